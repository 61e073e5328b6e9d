"""The laboratory's commands, one in each file; `ingest.cli` finds them by name."""
