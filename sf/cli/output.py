"""The console for the results of commands; errors go to the error stream."""

from __future__ import annotations

from rich.console import Console

__all__ = ["stdout"]

stdout = Console(soft_wrap=True)
