"""Consensus without I/O: a replicated log as a deterministic state machine.

`node.RaftNode` is what a driver owns. The other modules hold one concern each and know nothing of how they are run.
"""
