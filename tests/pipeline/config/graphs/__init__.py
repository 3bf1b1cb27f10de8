"""Tests of the sections about the form of graphs."""
