"""Answers constrained to a form, and read back: JSON for a schema, and calls of tools."""
