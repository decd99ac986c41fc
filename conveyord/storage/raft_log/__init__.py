"""The Raft log of one node in SQLite: what it promised, on disk before anybody is told, and never quietly cut short."""
