"""What Birdwire can ask of X, as data.

Owns one row for each operation (OPERATIONS) and lookup (LOOKUPS): X's method and path, the caller's fields, the scopes
that it needs, what the answer holds, and whether a repetition is harmless. Routes, commands, key rules, journal and
documents derive from these rows. Also the fields of a post and their rules, its length as X counts it, uploads in
chunks, the posts of a timeline, the estimated price of a call, and a text as it is shown to a person who decides on it.

Must never send anything by itself, nor know which key asks: a row builds a request, and the account's client sends it.

Read in this order: `operations`, `lookups`, `post`, then `post_length` with `unicode_nfc`, `link_hosts`,
`visible_text`, `media`, `timeline`, `prices`.
"""
