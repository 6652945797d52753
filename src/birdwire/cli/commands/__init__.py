"""The commands of `birdwire`, one module for each, and nothing that two of them share.

Owns a Typer application `app` in each module; COMMANDS in `birdwire.cli.command_line` lists which command it serves. A
module is loaded only when its command runs, so it may import what it needs.

Must never import another command: what two of them share is in `birdwire.cli`.
"""
