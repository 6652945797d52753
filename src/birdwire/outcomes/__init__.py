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

A write that needs a person's approval stops before step 2. One transaction stores its row in state `awaiting_approval`
with its encrypted payload, and lets the request answer for the name of step 1, until a day after its end. Once it is
approved, `Record.begin` is one unit: the charges, the only claim (`approved` to `started`), and the payload's hash.
`Record.check` takes the place of step 4, and `Record.put_back` undoes the start if nothing was sent for a passing
reason. Each unit that records the end also ends the approval and removes its payload. Its times are those of its start.

A crash leaves a row in `started`. `ProcessLeases` determines whether its process is dead; the `Reconciler` then marks
the row as `unknown`, searches the account's timeline for the post, and settles it as `found` or `not_found`.
Exactly-once delivery is impossible without support from X; this is the strongest guarantee available. An approved write
that is safe to repeat is not marked: another process takes it over (`Record.take_over`).

Must never send a write, repeat one whose outcome is unknown, or store the text of a post unencrypted.

The table of states, from which every query and list derives, is `store.tables.journal.STATES`. Read in this order:
`process_leases`, `entry`, `journal` with `journal_rows`, `settlement` (the units, and the charges of a guarded write),
`claims` (who sends an approved write), `approval_payload` (what is asked for) with `approval_seals` (its encryption),
`approval_records` (what waits, and its answer), `idempotency`, `post_matching`, `reconciler`; `report` and
`own_refusals` answer callers who ask; `attempts` records what was refused beforehand; `states` and `acts` are for
packages that must not read the store.
"""
