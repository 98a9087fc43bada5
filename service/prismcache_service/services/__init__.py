"""The rules: who waits, who fetches, what is known of the bucket."""
