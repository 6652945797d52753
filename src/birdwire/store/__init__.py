"""Everything at rest: the only package with SQL and the only one with encryption.

Owns the database on either engine, the schema and its migrations, one module of statements for each table's owner, the
vault and its keys, backups, and the transfer from one database to another.

Must never decide what a row means: owners above decide, and write through the statements in `tables`. Must never hand
out a secret that is not sealed, nor keep a transaction open while it waits for X.

Read in this order: `database` (what a caller may do), `schema`, `tables` (statements and rows), `engines` (how SQLite
and PostgreSQL keep the promises), `encryption`, then `backup` and `transfer`.
"""
