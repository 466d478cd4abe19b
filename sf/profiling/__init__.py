"""Latency and memory of full and sparse attention, measured in one run on one device."""
