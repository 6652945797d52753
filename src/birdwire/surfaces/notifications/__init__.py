"""How an event is worded for the operator: a message in the form that the destination takes.

Owns the table of titles and sentences (`wording`), and the messages of each kind of destination: JSON for programs, a
message of ntfy, and one of Slack, which Mattermost and Discord take too (`messages`).

Must never decide whether an event is sent, read the store, or send anything: `gateway.notifications` does, and hands in
all that a message may contain. Must never let a label or a text mention somebody, hide a character, or end a header.

Read in this order: `wording`, `messages`.
"""
