"""Protobuf messages of a schema registry to Arrow. Needs the extra `kafka-protobuf`."""
