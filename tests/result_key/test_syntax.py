"""Which changes of a source change its digest."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from sf.result_key.syntax import syntax_digest

BASE = '''
"""A module."""
from __future__ import annotations
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sf.jobs import Job

__all__ = ["measure"]


def measure(rows: list[int], scale: float = 1.0) -> float:
    """The mean."""
    total = 0
    for row in rows:
        total += row * scale  # scaled
    parts = [part for part in rows if part]
    if not parts:
        raise ConfigError("rows", rows, "are empty", "give some")
    assert total, "nothing"
    return total / len(rows)


class Meter:
    """Counts."""

    step: int = 0

    def up(self) -> None:
        """One more."""
        self.step += 1
'''


def digest(source: str, *sections: str) -> str:
    return syntax_digest(ast.parse(dedent(source)), sections)


SAME = {
    "a comment": ("# scaled", "# rows are scaled"),
    "a docstring": ("The mean.", "The mean of all rows."),
    "a docstring that goes": ('    """One more."""\n', ""),
    "formatting": ("row * scale", "(row\n            * scale)"),
    "a local variable": ("total", "amount"),
    "a loop variable": ("row ", "line "),
    "a comprehension's variable": ("part for part in rows if part", "x for x in rows if x"),
    "order of imports": ("import os\nimport sys", "import sys\nimport os"),
    "an import for types": ("import Job", "import Job, Tracker"),
    "an annotation": ("rows: list[int]", "rows: tuple[int, ...]"),
    "a return annotation": ("-> float", "-> int"),
    "a local annotation": ("total = 0", "total: int = 0"),
    "what is public": ('["measure"]', '["measure", "Meter"]'),
    "a message": ('"are empty", "give some"', '"must not be empty", f"give {rows}"'),
    "an assertion's message": ('"nothing"', '"no rows"'),
    "a string's spelling": ('"rows", rows', "'rows', rows"),
    "an import beside others": ("import os\n", "import os\nimport os\n"),
}


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME.keys())
def test_what_decides_no_result_does_not_count(old: str, new: str) -> None:
    changed = BASE.replace(old, new)
    if old == "row ":
        changed = BASE.replace("for row in", "for line in").replace("row * scale", "line * scale")
    assert changed != BASE
    assert digest(changed) == digest(BASE)


DIFFERENT = {
    "a number": ("total = 0", "total = 1"),
    "an operator": ("row * scale", "row / scale"),
    "a default": ("scale: float = 1.0", "scale: float = 2.0"),
    "a parameter's name": ("scale", "factor"),
    "a function's name": ("def measure", "def mean"),
    "an attribute": ("step", "count"),
    "a condition": ("if not parts", "if parts"),
    "another variable": ("return total / len(rows)", "return total / len(parts)"),
    "a local for a global": ("return total", "return TOTAL"),
    "an import's source": ("import sys", "import os.path as sys"),
    "a statement": ("total = 0", "total = 0; rows = rows[1:]"),
    "order of statements": (
        "    total = 0\n    for row", "    for row"
    ),
    "the kind of error": ("raise ConfigError(", "raise DataError("),
    "a class's field": ("step: int = 0", "step: int = 1"),
    "a class's annotation": ("step: int", "step: float"),
    "a decorator": ("    def up", "    @staticmethod\n    def up"),
    "an integer for a truth": ("total = 0", "total = False"),
    "an integer for a float": ("total = 0", "total = 0.0"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_can_decide_a_result_counts(old: str, new: str) -> None:
    changed = BASE.replace(old, new)
    assert changed != BASE
    assert digest(changed) != digest(BASE)


def test_the_text_of_an_error_that_becomes_a_table_s_cell_counts() -> None:
    source = 'raise DataError("row", 1, "has no answer", "give one")'
    assert digest(source) != digest(source.replace("no answer", "no text"))


def test_annotations_that_a_decorator_reads_count() -> None:
    source = "@triton.jit\ndef kernel(x, BLOCK: tl.constexpr): pass"
    assert digest(source) != digest(source.replace(": tl.constexpr", ""))
    plain = "@contextmanager\ndef f(x: int): yield x"
    assert digest(plain) == digest(plain.replace(": int", ""))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # a name of an enclosing function, another variable of it, and a global
        ("def f(a):\n x = a\n y = 2\n def g(): return x\n return g",
         "def f(a):\n x = a\n y = 2\n def g(): return y\n return g"),
        ("def f():\n def g():\n  x = 1\n def h(): return x\n",
         "def f():\n def g():\n  y = 1\n def h(): return y\n"),
        ("def f(x): return [x for x in x]", "def f(x): return [x for x in y]"),
        ("def f():\n try: pass\n except E as e:\n  e = e\n  return e",
         "def f():\n try: pass\n except E as e:\n  q = q\n  return q"),
        ("def f():\n global x\n x = 1", "def f():\n global x\n y = 1"),
        ("def f():\n x = 1\n return eval('x')", "def f():\n y = 1\n return eval('x')"),
        ("def f():\n class A:\n  x = 1\n x = A", "def f():\n class A:\n  y = 1\n y = A"),
        ("def f():\n import a as x\n return x", "def f():\n import a as y\n return y"),
        ("def f():\n x = 1\n def g():\n  nonlocal x\n  x = 2\n return x",
         "def f():\n x = 1\n def g():\n  x = 2\n return x"),
        ("def f():\n match a:\n  case x: return x", "def f():\n match a:\n  case y: return x"),
    ],
)  # fmt: skip
def test_two_programs_are_not_taken_for_one(one: str, other: str) -> None:
    assert digest(one) != digest(other)


def test_fields_and_validators_of_a_section_do_not_count() -> None:
    source = """
    class Train(Section):
        steps: Annotated[int, Field(ge=1, description="of the optimiser")]

        @model_validator(mode="after")
        def _fits(self):
            from sf.baselines.registry import misfit
            return self
    """
    assert digest(source, "Train") == digest("", "Train")
    computes = source + "\n        @property\n        def half(self): return self.steps // 2\n"
    assert digest(computes, "Train") != digest("", "Train")
    halved = computes.replace("ge=1", "ge=2").replace("_fits", "_fit")
    assert digest(computes, "Train") == digest(halved, "Train")
    assert digest(source) != digest("")
