"""Access to this host: its GPUs, CUDA, files, record files and digests."""
