"""Triton kernels of sparse attention. Import the modules one by one: they need triton."""
