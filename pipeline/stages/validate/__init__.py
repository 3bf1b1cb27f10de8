"""Artifacts against the FP32 reference, judged by gates."""
