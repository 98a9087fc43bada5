"""Tests that need torch and torch_em, in an environment of their own (`make test-torch`)."""
