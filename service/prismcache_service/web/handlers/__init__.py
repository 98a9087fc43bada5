"""HTTP, one module for each kind of thing: parse, ask the service, answer with a model."""
