"""A directory of Parquet files that a pipeline writes exactly once; `directory.py` says how."""
