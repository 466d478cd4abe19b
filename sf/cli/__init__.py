"""The command line `sf`."""

from sf.cli.app import app
from sf.cli.entry import main

__all__ = ["app", "main"]
