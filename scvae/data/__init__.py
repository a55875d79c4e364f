"""From an AnnData to batches: what was read, its values, and the order in which they go by."""
