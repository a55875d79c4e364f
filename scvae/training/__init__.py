"""From an AnnData to a FittedModel: reading, the loop, its step, its file, and training again."""
