"""Answers of each task: the judgement of an artifact's beside the reference's. Pure, one output at a time."""
