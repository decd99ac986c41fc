"""What a node does for its cluster. Roles do not know each other: they meet in the state and by RPC."""
