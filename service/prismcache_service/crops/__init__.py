"""Crops: make, list, evict, preview."""
