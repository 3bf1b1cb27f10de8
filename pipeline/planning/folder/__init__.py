"""An artifacts folder that several models share: who makes which of them, and their one manifest."""
