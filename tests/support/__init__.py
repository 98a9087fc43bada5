"""Stand-ins and judges for tests: crops as published, a real S3 server, a faulty network, the reference's result."""
