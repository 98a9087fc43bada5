"""A bucket as a lab sees it: nginx serves the bodies, by http or https, after a delay, over a slowed link.

nginx costs the machine little, as a server elsewhere does; rclone, which serves the listings, takes three CPU seconds
for the bodies of a crop. Server and link are in a network namespace of their own. Needs root, openssl, and Debian's
nginx-light, libnginx-mod-http-echo and iproute2.
"""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import ssl
import subprocess
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest import mock

from tests.support.certificates import HAVE_OPENSSL, make_signed_certificate
from tests.support.crops import BUCKET
from tests.support.processes import eventually
from tests.support.s3 import find_rclone

_ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_numbers = itertools.count(os.getpid())
_BURST = "512kb"
_QUEUE = "60ms"
_CONFIGURATION = """
load_module {echo};
user root; daemon off; worker_processes 1; error_log {run}/error.log; pid {run}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path {run}/1; proxy_temp_path {run}/2; fastcgi_temp_path {run}/3; uwsgi_temp_path {run}/4;
  scgi_temp_path {run}/5;
  server {{
    listen {address}:{port}{tls} backlog=4096; root {folder};
    {certificate}
    location ~ ^/[^/]+/?$ {{ proxy_pass http://127.0.0.1:9000; }}
    location / {{ {body} }}
    location @object {{ try_files $uri =404; }}
  }}
}}
"""


def lacking() -> str | None:
    """What this machine lacks for a link; None if nothing."""
    if os.geteuid() != 0:
        return "root"
    missing = [name for name in ("nginx", "ip", "tc") if shutil.which(name, path=_PATH) is None]
    if not HAVE_OPENSSL:
        return "openssl"
    return "nginx-light, libnginx-mod-http-echo and iproute2" if missing or not _ECHO.exists() else None


class Link:
    """Serves a folder of buckets, which must not change meanwhile; a context manager.

    Parameters
    ----------
    folder
        Holds a folder for each bucket.
    mbit_per_s
        Of the link, with all headers; None for as fast as the machine is.
    delay
        Seconds before the first byte of a body.
    tls
        Serve https, with a certificate of an authority of our own. ``AWS_CA_BUNDLE`` names the authority while the
        link is open, for the programs that are started meanwhile.

    Attributes
    ----------
    endpoint
        URL of the server.
    """

    def __init__(self, folder: Path, *, mbit_per_s: int | None = None, delay: float = 0.0, tls: bool = False) -> None:
        self._folder, self._rate, self._delay = folder.absolute(), mbit_per_s, delay
        self._number = next(_numbers) % 250
        self._namespace = f"prism-bench-{self._number}"
        self._address = f"10.98.{self._number}.2"
        self._tls, self._port = tls, 9002 if tls else 9001
        self.endpoint = f"{'https' if tls else 'http'}://{self._address}:{self._port}"

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._make_link(opened)
            run = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="prism-link-")))
            self._serve(opened, find_rclone(), "--config=", "serve", "s3", "--addr=127.0.0.1:9000", "--read-only",
                        "--vfs-cache-mode=off", "--no-modtime", "--dir-cache-time=100h", str(self._folder))  # fmt: skip
            certificate = self._make_certificate(opened, run) if self._tls else ""
            body = f"echo_sleep {self._delay}; echo_exec @object;" if self._delay else "try_files $uri =404;"
            configuration = _CONFIGURATION.format(
                echo=_ECHO, run=run, address=self._address, port=self._port, tls=" ssl" if self._tls else "",
                certificate=certificate, folder=self._folder, body=body,
            )  # fmt: skip
            (run / "nginx.conf").write_text(configuration)
            self._serve(opened, "nginx", "-c", str(run / "nginx.conf"))
            eventually(self._responds, "the server responds", 120)  # rclone hashes what it lists
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _make_link(self, opened: ExitStack) -> None:
        here, there, net = f"pbh{self._number}", f"pbt{self._number}", f"10.98.{self._number}"
        inside = ["ip", "netns", "exec", self._namespace]
        _run("ip", "netns", "add", self._namespace)
        opened.callback(_run, "ip", "netns", "del", self._namespace)
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self._namespace)
        _run("ip", "addr", "add", f"{net}.1/24", "dev", here)
        _run("ip", "link", "set", here, "up")
        _run(*inside, "ip", "addr", "add", f"{self._address}/24", "dev", there)
        for device in (there, "lo"):
            _run(*inside, "ip", "link", "set", device, "up")
        if self._rate is not None:
            limit = ["rate", f"{self._rate}mbit", "burst", _BURST, "latency", _QUEUE]
            _run(*inside, "tc", "qdisc", "add", "dev", there, "root", "tbf", *limit)

    def _make_certificate(self, opened: ExitStack, folder: Path) -> str:
        """Make a certificate, have programs trust it, and return what nginx is to be told of it."""
        authority, certificate, key = make_signed_certificate(folder, self._address)
        opened.enter_context(mock.patch.dict(os.environ, AWS_CA_BUNDLE=str(authority)))
        return f"ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_session_cache shared:tls:10m;"

    def _serve(self, opened: ExitStack, *command: str) -> None:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._namespace, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        opened.callback(process.wait)
        opened.callback(process.terminate)

    def _responds(self) -> bool:
        trusted = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
        request = f"{self.endpoint}/{BUCKET}?list-type=2&max-keys=1"
        try:
            with urllib.request.urlopen(request, timeout=120, context=trusted) as response:  # noqa: S310 - our own server
                return bool(response.status == http.client.OK)
        except OSError:
            return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
