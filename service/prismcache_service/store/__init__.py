"""The job store: what must survive a restart."""
