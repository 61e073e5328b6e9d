"""Programs around the service: they use it, it never uses them."""
