"""Models of tensors: the inputs that callers hand over."""
