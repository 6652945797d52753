"""The commands of `birdwire`, one module each."""
