"""Triton kernels of sparse attention. Import the modules individually, since they need triton."""
