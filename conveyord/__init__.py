"""conveyord moves records into lakehouse tables, exactly once. See ARCHITECTURE.md."""

__version__ = "0.1.0"
