"""The command line, a file a group of subcommands; a caller of the package like any other."""

from robgib.cli.main import app, main

__all__ = ["app", "main"]
