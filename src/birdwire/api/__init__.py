"""The contract with callers, as plain data: messages, errors, bodies."""
