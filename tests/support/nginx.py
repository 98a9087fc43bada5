"""A real nginx in front of a service: TLS, a sub-path, and buffering as nginx has it by default."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.certificates import HAVE_OPENSSL, make_certificate

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
LACKING = None if NGINX and HAVE_OPENSSL else "needs nginx and openssl: `sh .ci/install-nginx` as root on Debian"

_CONFIGURATION = """
daemon off; worker_processes 1; error_log stderr; pid {folder}/nginx.pid; {user}
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    location {prefix} {{
      proxy_pass {upstream}/; proxy_http_version 1.1; proxy_set_header Host 127.0.0.1;
      proxy_set_header X-Forwarded-Proto https; proxy_set_header X-Forwarded-Prefix {prefix};
    }}
  }}
}}
"""


class Nginx:
    """nginx with TLS, which passes requests below a prefix on to a service; a context manager.

    Parameters
    ----------
    folder
        For the configuration, the certificate and nginx's own files.
    upstream
        URL of the service, without a slash at its end.
    prefix
        Path below which the service appears.

    Attributes
    ----------
    url
        URL of the service as clients of nginx see it, without a slash at its end.
    certificate
        PEM file of the certificate, which vouches for itself.
    """

    def __init__(self, folder: Path, upstream: str, prefix: str = "/prism/") -> None:
        self.certificate, key = make_certificate(folder)
        # nginx takes over a listening socket that the variable NGINX names, so that the port is free for certain.
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        self.url = f"https://127.0.0.1:{port}{prefix.rstrip('/')}"
        self._configuration = folder / "nginx.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(
                folder=folder, port=port, certificate=self.certificate, key=key, prefix=prefix, upstream=upstream,
                user="user root;" if os.geteuid() == 0 else "",
            )
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert NGINX is not None
        fd = self._socket.fileno()
        self._process = subprocess.Popen(
            [NGINX, "-c", str(self._configuration)], env=os.environ | {"NGINX": f"{fd};"}, pass_fds=[fd],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._socket.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
