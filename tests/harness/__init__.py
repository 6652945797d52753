"""Shared test infrastructure: gateways, database and Redis servers, peers, and scales of the fault tests."""
