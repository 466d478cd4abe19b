"""An own model on own questions: what `sf evaluate` and `sf train` do.

Both call the stages of a study with values made here: `base` takes the checkpoint over, `prepare`
reads the questions. The same command again adopts what is finished and goes on with the rest.
"""

from sf.own.asked import Asked, Comparison, Recipe

__all__ = ["Asked", "Comparison", "Recipe"]
