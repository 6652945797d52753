"""The control API of the sandbox: faults, switches, traffic."""
