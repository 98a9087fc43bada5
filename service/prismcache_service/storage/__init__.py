"""The cache folder: publication, manifests, leases."""
