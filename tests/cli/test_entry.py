"""Which output of libraries the command line shows."""

from __future__ import annotations

import sys
import warnings

import pytest

from sf.cli import main


def test_transformers_announcements_to_programmers_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def app() -> None:
        for module in ("transformers.modeling_utils", "torch.nn"):
            warnings.warn_explicit(f"of {module}", FutureWarning, "file.py", 1, module=module)
        warnings.warn_explicit("weights", UserWarning, "file.py", 1, module="transformers.loading")

    monkeypatch.setattr("sf.cli.entry.app", app)
    monkeypatch.setattr(sys, "argv", ["sf"])
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # main wraps them
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        main()
    assert [str(each.message) for each in shown] == ["of torch.nn", "weights"]
