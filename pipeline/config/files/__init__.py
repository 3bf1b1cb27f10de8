"""Configuration files: YAML with positions, files of several models, and files that `tune` derives."""
