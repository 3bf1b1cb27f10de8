"""Models whose inputs are the user's own arrays, in the place of images."""
