"""What to fetch and where it goes (pure)."""
