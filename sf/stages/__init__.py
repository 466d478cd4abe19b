"""The stages, one module each: parameters and `run()`."""
