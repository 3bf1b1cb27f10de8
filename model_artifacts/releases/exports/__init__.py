"""Releases in the forms of other tools."""
