"""Guardrails: what the calls of a key, an account or the whole gateway may do and spend, and how to stop them.

Owns the rules of policies and their evaluation, the guard that applies to a key, what a call reserves of budgets and
caps, pauses, and the decisions of a person on a write that waits.

Must never send a request to X, let an API key approve anything, or decide by a model or by what a caller claims. The
evaluation knows neither clock nor database: the same policies, proposal and context always give the same decision.

Read in this order: `rules` (the table of rules, whose rows are in `content_rules` and `counting_rules`, and whose
values `rule_values` reads), `policy` (the evaluation) with `decision` (its vocabulary), `proposal` (what a call asks
for), `word_matching`, `windows`, `presets`, `guards` (what applies to a key now), `spending` (what a call reserves and
gives back) with `budget_reports` (how much of a budget is used), `pauses` and `trips` (how X's refusals start one),
`status` (what `auth/status` shows), `preview` (what a call would do), `registry` (how the operator changes policies and
pauses), `rehearsal` (trials and replays). Then the writes that wait: `asking` (what a person is shown), `approvals`
(the question and each decision, one transaction each) with `held_writes` (the parts of these transactions), and
`signed_links` (a decision by link) with `opened_link` (what its page sees).
"""
