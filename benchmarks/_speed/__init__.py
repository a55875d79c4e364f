"""The speed benchmark: parts that say what to measure, and workers that measure it, each in a process of its own."""
