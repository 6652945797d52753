"""What Birdwire can ask of X: operations, look-ups, uploads, posts."""
