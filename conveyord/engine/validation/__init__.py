"""What a row must look like: rules on columns, which Arrow computes, and JSON Schemas, which take a row at a time."""
