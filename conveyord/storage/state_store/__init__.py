"""The replicated state on the disk of a node: SQL tables, the index of the last entry in them, and their snapshots."""
