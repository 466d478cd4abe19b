"""A user's model and questions: the implementation of `sf evaluate` and `sf train`.

Both run the stages of a study with values set here: `base` adopts the checkpoint, `prepare`
reads the questions. The same command reuses finished results and continues with the rest.
"""

from sf.own.asked import Asked, Comparison, Recipe

__all__ = ["Asked", "Comparison", "Recipe"]
