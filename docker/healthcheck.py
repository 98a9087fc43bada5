"""Exit with 0 if ``/readyz`` of this container's service says ready; else print the response and exit with 1."""

from __future__ import annotations

import http.client
import os
import ssl
import sys


def main() -> int:
    """Ask the service directly, without a proxy that the environment names."""
    port = int(os.environ.get("PRISMCACHE_PORT") or 8765)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=8)
    if os.environ.get("PRISMCACHE_TLS_CERT"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate is for the lab's host name
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=8, context=context)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        sys.stdout.write(response.read(2000).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no response: {error}")
        return 1
    finally:
        connection.close()
    return int(response.status != http.client.OK)


if __name__ == "__main__":
    sys.exit(main())
