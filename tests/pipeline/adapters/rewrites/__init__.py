"""Tests of the rewrites of graphs."""
