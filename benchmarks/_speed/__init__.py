"""The speed benchmark: parts define what to measure, and workers measure it, each in its own process."""
