"""The HTTP client towards X, and what its responses mean."""
