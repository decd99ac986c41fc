"""How records are counted, positioned and acknowledged."""
