"""The OpenAPI 3.1 document, derived from the tables.

Owns the endpoints with their examples (`endpoints`), the models of responses (`responses`), the schemas of requests
and errors (`schemas`), the document itself (`document`), an outline of it for texts (`outline`), and its YAML form
(`yaml`).

Must never state a fact that a table already states: reasons, fields, limits and scopes are read from their owners.
"""
