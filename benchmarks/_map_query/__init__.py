"""Parts of benchmarks/map_query.py."""
