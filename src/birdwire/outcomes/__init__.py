"""What became of each write: the journal, idempotency, and the reconciliation of lost posts.

Owns the protocol of a write, for an operation that must never be sent twice (a repeatable one skips steps 3 and 4):

1. `Idempotency.attempt` stores the name (the Idempotency-Key, or one that Birdwire makes) in state `started`, with this
   process as its owner. If the name is held, the earlier call's answer is replayed, or the call is refused.
2. `Journal.open` returns a `Record`, and refuses the write while the store has been down for too long.
3. `Record.begin` stores the row in state `started` and waits until it is durable.
4. `Idempotency.hold` checks that this process still holds the name. A process takes a name over before it reads the
   journal, and this one writes the journal before it checks the name: one of the two sees the other, and does not send.
5. The write is sent to X.
6. `Record.confirmed` or `Record.failed` stores the state: `confirmed`, `refused`, `not_sent`, or `unknown`.
7. The end of the attempt stores a final answer, releases a name that may be used again, or marks it as unknown.

A crash leaves a row in `started`. `ProcessLeases` determines whether its process is dead; the `Reconciler` then marks
the row as `unknown`, searches the account's timeline for the post, and settles it as `found` or `not_found`.
Exactly-once delivery is impossible without support from X; this is the strongest guarantee available.

Must never send a write, repeat one whose outcome is unknown, or store the text of a post unencrypted.

The table of states, from which every query and list derives, is `store.tables.journal.STATES`. Read in this order:
`process_leases`, `journal`, `settlement` (the charges of a guarded write), `idempotency`, `post_matching`,
`reconciler`; `report` and `own_refusals` answer callers who ask; `attempts` records what was refused beforehand.
"""
