"""Latency and throughput of artifacts under load, by MLCommons' LoadGen."""
