"""Tables, with the statements that read and write them: one module for each owner.

Owns every table. A module defines its tables, the frozen dataclasses as which rows leave it, and functions that execute
one statement or a few in the caller's transaction. States are StrEnums, so that the type checker finds a misspelt
state. Rows are passed in as mappings from column to value, since a statement often sets only some columns.

Must never open a transaction, decide what a caller may do, or decrypt anything.

Start with `api_keys`, then read `journal`, which holds the table of states, and `idempotency`. `acts` holds statements
that several owners execute in their own transactions. `sealed_columns` lists every encrypted column of every table.
"""
