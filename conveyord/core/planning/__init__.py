"""What to do next, decided from a view of the world."""
