"""RPC between nodes: calls, streams and one-way messages, both ways on one connection. Specified in docs/wire.md."""
