"""Avro's binary encoding to Arrow, many values side by side."""
