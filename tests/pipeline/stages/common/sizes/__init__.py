"""Tests of outputs that follow the size of the image."""
