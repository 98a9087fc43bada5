"""The bucket: list, read, verify, retry.

Two doors, since importing the SDK takes half a second: `source` has the interface, `s3` opens a bucket.
"""
