"""A user's model and questions: the implementation of `sf evaluate` and `sf train`.

Both run the stages of a study with values set here: `base` adopts the checkpoint, `prepare`
reads the questions. The same command reuses finished results and continues with the rest.
"""

from sf.own.options import Comparison, Inputs, Recipe

__all__ = ["Comparison", "Inputs", "Recipe"]
