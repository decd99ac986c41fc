"""Blocking drivers behind small ports. Never imports trio."""
