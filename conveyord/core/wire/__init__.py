"""What nodes say to each other, as bytes: frames and their heads, without I/O. Specified in docs/wire.md."""
