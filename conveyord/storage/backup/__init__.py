"""Backups of the replicated state, and what makes a node of one: restore, recover, verify. See docs/backup.md."""
