"""Calls of many threads → execution contexts: a bounded pool with fair waiting, and micro-batches."""
