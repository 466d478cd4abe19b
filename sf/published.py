"""Settings of the paper (arXiv 2504.18579) that code uses if nothing else is given."""

from __future__ import annotations

__all__ = ["INFERENCE_RETENTION_P"]

INFERENCE_RETENTION_P = 0.975
"""p at inference, of ZipVL and of the trained model."""
