"""Everything known about X, and nothing about callers or API keys."""
