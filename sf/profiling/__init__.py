"""Latency and memory of full against sparse attention, measured in one run on one device."""
