"""Records of the stages that run only by their names."""
