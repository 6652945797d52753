"""X's OAuth 2.0 as the sandbox answers it."""
