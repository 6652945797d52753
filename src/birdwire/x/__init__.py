"""Everything known about X (Twitter): how to call it, what it offers, and what holds a call back.

Three packages, each of which may import the ones before it:

- `client`: HTTP towards X. Connections, requests, and what X's responses mean.
- `catalog`: what Birdwire can ask of X, as tables. Operations, look-ups, uploads, the fields and the length of a post.
- `limits`: what delays or stops a call. X's rate windows, circuit breakers, the order of writes, and which operations X
  lets this app do.

Must never know a caller, an API key or the journal: who acts, and what becomes of it, is decided above. Must never
contain a number of X's that X can change: limits, access levels and prices come from X's responses or from data files.

X.com's documentation names the same things as tweet and post; the code says post, and `tweet_id` only where X's API
does.
"""
