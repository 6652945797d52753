"""Notifications: each event of the outbox reaches the operator's destination, at least once.

Owns the destination with its URL and secrets, the lease of the one process that sends, the schedule of retries, the
signatures of Standard Webhooks, and when a destination is switched off.

Must never word a message (a function that is handed in does), write SQL, send a request except through
`runtime.outbound`, or decide anything about a call: a gateway whose destination is down does everything else as before.

What makes an event true writes it, in its own transaction, by `store.tables.outbox`. Without a destination nothing is
written, and nothing here runs a query.

Read in this order: `news` (an event as it is worded), `signatures`, `destination` (what the operator sets), `schedule`
(when a failed delivery is tried again), `extras` (the text and the link, where the operator wants them), `results`
(what each try changes, in one transaction), `deliveries` (the rounds).
"""
