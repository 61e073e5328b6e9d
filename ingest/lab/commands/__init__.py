"""The laboratory's commands, one in one file; `ingest.cli` finds them by name."""
