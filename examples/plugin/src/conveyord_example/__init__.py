"""Operators for conveyord, as an example. Importing this package does nothing."""
