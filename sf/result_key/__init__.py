"""What a result was made from, and whether it still holds.

A result's key holds what can change the result and nothing else: the parameters that the stage
uses, the content of its inputs, the syntax trees of the code that it imports, and the versions of
the packages that it computes with. `docs/pipeline.md` states the rules.
"""
