"""Everything known about X (Twitter): how to call it, what it offers, and what holds a call back.

Owns three packages, each of which may import the ones before it:

- `client`: HTTP towards X. Connections, requests, and what X's responses mean.
- `catalog`: what Birdwire can ask of X, as tables. Operations, lookups, uploads, the fields and the length of a post.
- `limits`: what delays or stops a call. X's rate windows, circuit breakers, the order of writes, and which operations X
  lets this app do.

Must never know a caller, an API key or the journal: the packages above decide which account acts. Must never
contain a number of X's that X can change: limits, access levels and prices come from X's responses or from data files.

X's documentation uses both "tweet" and "post" for the same thing. The code calls it a post; only names that X's API
defines, such as `tweet_id`, keep the older word.
"""
