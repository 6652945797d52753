"""What any long-running service needs. Contains no word of this domain.

Owns the clock, addresses, POSTs to URLs that an attacker may have proposed, open-file limits, private files, single
flights, background tasks, failpoints, log lines, metrics, health checks and the name and speed of the Python in use.

Must never know an API key, an X account, the store or X: probes, sources and exceptions of other packages are passed
in. It may import `api`, because a log line describes a Call and an error.

Read in this order: `clock`, `addresses`, `outbound_urls` with `outbound`, `single_flight`, `background`, then
`telemetry` with `log_writer` and `metrics`, and `health`. `failpoints` matters to tests only; `file_limits` and
`private_files` to the start of a process; `interpreter` to `birdwire check` and the benchmark.
"""
