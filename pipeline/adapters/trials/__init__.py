"""Trials of what a library does, where it does not say so beforehand."""
