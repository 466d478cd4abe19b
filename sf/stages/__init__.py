"""One short file a stage: parameters and `run()`."""
