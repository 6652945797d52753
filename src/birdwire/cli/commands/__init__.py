"""The commands of `birdwire`: one module for each command or group of commands."""
