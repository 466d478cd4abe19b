"""The sections of `gpu_session.py`, one module per subject."""
