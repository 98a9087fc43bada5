"""An HTTP proxy as many institutes have one: takes absolute URLs and CONNECT, may want a password."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class ForwardProxy:
    """A context manager; `requests` are the first lines of what it was asked.

    Parameters
    ----------
    credentials
        ``user:password`` that each request must bring; None asks for none.
    host
        Where the proxy listens: 127.0.0.1 or ::1.
    refusal
        Status line of the response to every request; None forwards requests.
    """

    def __init__(self, credentials: str | None = None, host: str = "127.0.0.1", refusal: str | None = None) -> None:
        self.requests: list[str] = []
        expected = None if credentials is None else base64.b64encode(credentials.encode()).decode()
        requests = self.requests

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head = _read_head(self.request)
                if not head:
                    return
                first, *lines = head.decode().split("\r\n")
                requests.append(first)
                given = [line.split()[-1] for line in lines if line.lower().startswith("proxy-authorization:")]
                if expected is not None and given != [expected]:
                    refused = "407 Proxy Authentication Required"
                else:
                    refused = refusal or ""
                if refused:
                    self.request.sendall(f"HTTP/1.1 {refused}\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                _forward(self.request, first, lines)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, 0), Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{credentials + '@' if credentials else ''}{shown}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _read_head(client: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(65_536)
        if not piece:
            return b""
        head += piece
    return head


def _forward(client: socket.socket, first: str, lines: list[str]) -> None:
    method, target, version = first.split()
    if method == "CONNECT":
        host, _, port = target.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as server:
            client.sendall(b"HTTP/1.0 200 Connection established\r\n\r\n")
            _relay(client, server)
        return
    url = urlsplit(target)
    path = f"{url.path or '/'}{'?' + url.query if url.query else ''}"
    kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:")) and line]
    request = "\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""])
    with socket.create_connection((url.hostname or "", url.port or 80)) as server:
        server.sendall(request.encode())
        _relay(client, server)


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Both ways, until either side ends."""
    other = threading.Thread(target=_pump, args=(client, server), daemon=True)
    other.start()
    _pump(server, client)
    other.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # either side may be gone
        while piece := source.recv(65_536):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
