"""The sandbox's world, and how it is set."""
