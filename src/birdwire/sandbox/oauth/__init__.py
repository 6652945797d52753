"""X's OAuth 2.0 as the sandbox simulates it: clients, consent page, grants, token endpoint."""
