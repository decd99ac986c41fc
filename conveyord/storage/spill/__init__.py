"""The disk queue between two stages: checksummed segments, bounded, and never wrong after a crash."""
