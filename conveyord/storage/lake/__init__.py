"""Iceberg tables: catalogs, data files, commits, maintenance."""
