"""Measurements of a fitted model and its embedding; they take arrays and cells, never an AnnData."""
