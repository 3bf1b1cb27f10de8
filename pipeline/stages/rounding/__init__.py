"""The stage `rounding`."""
