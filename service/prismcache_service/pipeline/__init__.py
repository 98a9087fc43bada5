"""How one crop travels from the bucket to a file."""
