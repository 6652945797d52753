"""A call with a key, from admission to a recorded outcome."""
