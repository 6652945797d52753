"""A call with a key, from admission to a recorded outcome.

Owns the frame of every such call and the steps of its work: the admission of its key, the limits of concurrent calls
and uploads, the work that runs once for each Idempotency-Key, one operation as one list of named steps, one lookup, and
the details of X's refusals. Owns the sending of what a person approved, too, and the callers that wait for it.

Must never know a web framework or a path: it gets a Call and the rules of its route, and returns an Answer. Must never
skip a step for one caller, send a request to X itself (the account's client does), or write SQL.

A guarded call is judged and charged by `guardrails`, through the same steps. A dry run goes through `Writes.preview`,
which runs the check of each step and nothing else. A write that needs a person stops at the step `ask`, and its call is
answered with 202. Once it is approved, `ApprovedWrites` sends it through `Writes.perform_approved`. `notifications`
sends what the operator should hear of; no call waits for it.

Read in this order: `pipeline` (the frame: `admit`, then `do_once`), `admission` (the checks of its key),
`capacity` with `concurrency` and `upload_limits` (the limits of this process), `step` and `writes` (the steps of an
operation), `sender` and `uploader` (its last step), `refusal_details` (what X's refusal means), `lookups`. Then what
comes after a 202: `approved_writes` (who sends, expires and reports), `second_look` (what must still hold),
`approval_waits` (the callers that are held), `cancellations`.

A call over HTTP goes through `Pipeline.admit`, `Pipeline.do_once` and `Writes.perform`. A caller that was admitted in
another way goes through `do_once` and `perform`.
"""
