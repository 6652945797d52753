"""The commands of `birdwire`, one module for each, and nothing that two of them share.

A module holds a Typer application `app`; COMMANDS in `birdwire.cli` lists which command it serves. It is loaded only
when its command runs, so it may import what it needs.
"""
