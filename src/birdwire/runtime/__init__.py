"""What any long-running service has, without a word of this domain."""
