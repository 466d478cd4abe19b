"""What `gpu_session.py` measures, a module a subject."""
