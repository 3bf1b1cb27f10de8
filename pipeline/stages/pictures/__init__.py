"""An artifact's answers to pictures that its GPU decodes."""
