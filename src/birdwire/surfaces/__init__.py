"""What others read to learn what can be done here; all of it comes from OPERATIONS and PROBLEMS."""
