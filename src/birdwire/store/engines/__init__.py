"""The two engines behind `store.database`, and the parts that they share.

Owns the SQLite engine (`sqlite`, which commits in a `disk_thread`) and the PostgreSQL engine (`postgres`) with the same
methods, group commit, by which concurrent writes share a transaction (`group_commit`), and the change feed, by which
every process learns which keys changed (`change_feed`, and `pg_notifications` for PostgreSQL).

Must never know a table of an owner. Must never report a write as failed that may have been committed: a lost COMMIT is
looked up.
"""
