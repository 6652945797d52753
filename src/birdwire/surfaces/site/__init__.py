"""What the gateway serves about itself: the OpenAPI document, a page for people, and a text for agents.

Owns the list of documents and their paths (`documents`), the text for agents (`discovery`), the page for people
(`page`), and the handler that builds each once and serves it (`handler`).

Must never load these modules before a client asks for a document: together they take 5 MiB.
"""
