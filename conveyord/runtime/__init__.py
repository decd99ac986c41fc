"""What talks to the network, in trio: knows nothing of pipelines, only of limits."""
