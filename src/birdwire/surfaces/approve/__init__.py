"""The page of a signed link, on which a person decides about a write that waits.

Owns the reading of a payload for a person (`payload_view`), what the page shows of a request and of its end
(`request_view`), the form that decides (`decision_form`), and the handlers of its routes (`pages`).

Must never decide on a GET or HEAD, leave out a member of what would be sent, show a code point that a person cannot
see, or put the token of a link into a log. Must never read the store: `gateway.guardrails.signed_links` does, and
returns an `opened_link`.

Read in this order: `payload_view`, `request_view`, `decision_form`, `pages`.
"""
