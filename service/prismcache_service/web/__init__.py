"""HTTP: app, server, tokens, limits, handlers."""
