"""The service side of prismcache: how a crop is made, kept and served. The client is the package `prismcache`."""
