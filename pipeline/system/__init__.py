"""The operating system's side of steps: isolated work, ends of processes, locks, cached digests, profiler ranges."""
