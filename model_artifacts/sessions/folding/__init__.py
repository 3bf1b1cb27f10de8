"""Folding of batch-norms into the layers before them, for networks that torch.fx cannot trace."""
