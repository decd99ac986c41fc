"""Runs a pipeline graph: messages, operator contracts, schemas, execution."""
