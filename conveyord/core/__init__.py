"""Pure logic: no I/O, no clock, no randomness, no event loop, no logging."""
