"""`conveyorctl`: what is asked of nodes, and what needs none."""
