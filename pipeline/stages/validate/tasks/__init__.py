"""What each task's answers are, and how an artifact's are judged beside the reference's. Pure, one output at a time."""
