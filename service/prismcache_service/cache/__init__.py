"""The cache folder."""
