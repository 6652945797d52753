"""The X accounts linked to API keys, their tokens, and the calls made with them."""
