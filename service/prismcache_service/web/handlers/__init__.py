"""The routes, one module for each group: parse the request, call a service, return a model."""
