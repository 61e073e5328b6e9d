"""One worker process: what it is built of, how it runs, stops, leaves, and takes over."""
