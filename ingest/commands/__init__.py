"""What an operator types, one command in one file; `ingest.cli` finds them by name."""
