"""From an AnnData or files to batches: schema, values, checks, and the order of the cells."""
