"""Dead letters on disk: an SQLite index, and checksummed segments that hold the payloads."""
