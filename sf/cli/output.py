"""Where commands print what they were asked for; errors go to the error stream."""

from __future__ import annotations

from rich.console import Console

__all__ = ["stdout"]

stdout = Console(soft_wrap=True)
