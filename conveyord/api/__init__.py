"""What users and programs may ask of a node: one table of operations, and the doors that it yields (docs/api.md)."""
