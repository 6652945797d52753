"""The control API of the sandbox, under /_sandbox, for tests and for people who try things out.

Owns its endpoints (`endpoints`), the failures that a test orders (`faults`), the record of every request with the
injection of those failures (`traffic`), and a TCP proxy that delays, cuts or slices a connection (`tcp_proxy`).

Must never be reachable from beyond this machine: it can approve links, change the world and inject faults.
"""
