"""The study as a graph of stages, for both engines."""
