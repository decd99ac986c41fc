"""What the `http` source and the `http` sink have in common."""
