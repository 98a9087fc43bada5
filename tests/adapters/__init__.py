"""Tests with other stacks, in an environment of their own (`make test-adapters`)."""
