"""Reads references that rows are looked up in: files, SQLite databases, Iceberg tables. Blocking, read-only."""
