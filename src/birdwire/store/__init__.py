"""Everything that is kept: the only place with SQL. One file of functions for each owner above."""
