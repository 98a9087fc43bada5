"""The bucket: list, read, verify, retry."""
