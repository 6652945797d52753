"""The control API of the sandbox: state, switches, faults and traffic, and the fault-injecting TCP proxy."""
