"""The key of a result: its inputs, and whether it is still valid.

A key contains exactly what can change the result: the parameters that the stage uses, the contents
of its inputs, the syntax trees of the code that it imports, and the versions of the packages that
it computes with. `docs/pipeline.md` states the rules.
"""
