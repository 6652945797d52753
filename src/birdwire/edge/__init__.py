"""The HTTP server that callers reach."""
