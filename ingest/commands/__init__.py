"""Commands that an operator types, one in each file; `ingest.cli` finds them by name."""
