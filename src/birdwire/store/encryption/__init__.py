"""Encryption at rest: the vault, its key files, and key rotation.

Owns AES-256-GCM with each value bound to its place (`vault`), private key files (`key_files`), and the change from one
vault key to another, alongside serving gateways (`key_rotation`).

Must never log, print or return a vault key except to the vault, nor create one unasked. Must never open a value whose
place, generation or form is not the one that it was sealed for.
"""
