"""The pages and documents that describe the gateway."""
