"""The sandbox's state: the world with its seed and fixtures, the clock, the switches, rate limits and uploads."""
