"""Where work runs: the interface, and worker processes on this machine."""
