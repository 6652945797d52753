"""X's API v2 as the sandbox simulates it: the dispatcher, the endpoints, and X's refusals."""
