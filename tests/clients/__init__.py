"""Clients that others wrote, in an environment of their own: make test-clients."""
