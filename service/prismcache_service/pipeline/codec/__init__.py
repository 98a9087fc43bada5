"""What threads do to a chunk."""
