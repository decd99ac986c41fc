"""The shell round `core/raft`: one task that owns the node, one thread for its log and one for its state."""
