"""The user's own arrays, one for each input of the model."""
