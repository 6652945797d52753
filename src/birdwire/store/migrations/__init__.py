"""The migrations of the database's schema, run by Alembic.

Owns one script for each change of the schema (`versions`), in order, and the code by which Alembic runs them on the
connection that it is given (`env`). `store.schema` decides when they run.

Must never let a script import the modules of `store.tables`: a script describes the schema as it was when the script
was written. Must never change a script after a release.
"""
