"""Latency and throughput of a target's artifacts."""
