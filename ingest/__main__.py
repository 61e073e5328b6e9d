"""`python -m ingest` is the same as `iov-ingest`."""

from ingest.cli import main

main()
