"""The stage `propose`: see `spec.py`."""
