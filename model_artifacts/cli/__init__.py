"""The command line `model-artifacts`."""
