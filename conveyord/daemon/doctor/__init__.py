"""What `conveyord doctor` looks at: the machine, the directory, the ports, the certificates and the other nodes."""
