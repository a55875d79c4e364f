"""A fitted model and cells in, arrays out: posteriors, decoding, refinement, differences, labels."""
