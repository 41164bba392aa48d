"""Where new workers come from, for a master that scales its cluster by itself."""
