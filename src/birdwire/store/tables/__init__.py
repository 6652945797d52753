"""One module of statements for each owner of a table."""
