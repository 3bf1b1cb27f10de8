"""Variants → engines, modules and other artifacts."""
