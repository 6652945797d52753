"""What became of each write."""
