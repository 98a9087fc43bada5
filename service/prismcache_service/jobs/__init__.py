"""Accepted requests, and one task for each file."""
