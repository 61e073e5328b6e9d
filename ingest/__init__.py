"""iov-ingest: vehicle samples from MQTT into PostgreSQL, acknowledged only after the commit."""
