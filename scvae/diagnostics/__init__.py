"""What is measured of a fitted model and of its embedding: on arrays and cells, never on AnnData."""
