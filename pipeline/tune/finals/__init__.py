"""The finals of a search: interleaved restarts, the standings of the finalists, and the winner as a configuration."""
