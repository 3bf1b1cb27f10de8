"""Outputs of networks that take images of several sizes."""
