"""Functions from a fitted model and cells to arrays: posteriors, decoding, refinement, differences, labels."""
