"""The service's own TLS certificate: checked before the port is opened, and read again when it is renewed on disk."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import structlog

from prismcache.errors import ConfigError

WATCH_SECONDS = 5.0
"""Time between two looks at the files; a renewed certificate is used no later than that."""

_log = structlog.get_logger(__name__)


class Certificate:
    """A certificate and its private key, as clients get them.

    `certificate` is a PEM file of the certificate, followed by the certificates between it and its authority; `key` one
    of the private key without a password, perhaps in the same file. `context` is for the listening socket: a handshake
    takes the newest pair of files, also after the context was handed over. Raise `ConfigError` if a file cannot be read
    or holds something else, if the two do not belong together, or if clients would refuse the certificate because it
    has expired.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._stamp = self._look()
        self._newest = self.context = _load(certificate, key)
        self.context.sni_callback = self._present

    def refresh(self) -> None:
        """Load the files again if they have changed; files that cannot be used change nothing and are logged."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = _load(self._certificate, self._key)
        except ConfigError as error:
            # Also while a renewal has replaced one of the two files: the other one changes the stamp again.
            _log.warning("certificate not renewed, the one before stays", error=str(error))
            return
        _log.info("audit", action="certificate read again", certificate=str(self._certificate))

    async def watch(self) -> None:
        """Until cancelled, use renewed files within `WATCH_SECONDS` s."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await asyncio.to_thread(self.refresh)

    def _present(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Give a new connection the newest context: OpenSSL calls this in each handshake, with or without a name."""
        connection.context = self._newest

    def _look(self) -> list[Any]:
        """Return what changes with the files."""
        found: list[Any] = []
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError as error:
                found.append(error.errno)
        return found


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    _require_pem(certificate, "-----BEGIN CERTIFICATE-----", "certificate", "PRISMCACHE_TLS_CERT")
    _require_pem(key, "PRIVATE KEY-----", "private key", "PRISMCACHE_TLS_KEY")

    def no_password() -> str:
        raise ConfigError(
            f"the private key {key} has a password, which the service cannot ask for",
            remedy=f"Write it without a password: openssl pkey -in {key} -out KEY.pem; set PRISMCACHE_TLS_KEY to that.",
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the private key {key} does not belong to the certificate {certificate}",
                remedy="Set PRISMCACHE_TLS_CERT and PRISMCACHE_TLS_KEY to files that were issued together; the "
                "server's own certificate comes first in its file.",
            ) from None
        raise ConfigError(
            f"the certificate {certificate} and the private key {key} cannot be used: {error.reason or error}",
            remedy="Set PRISMCACHE_TLS_CERT and PRISMCACHE_TLS_KEY to undamaged PEM files.",
        ) from None
    if reason := _refusal(context, certificate):
        raise ConfigError(
            f"every client would refuse the certificate {certificate}: {reason}",
            remedy="Renew the certificate, or set this machine's clock.",
        )
    return context


def _require_pem(path: Path, marker: str, noun: str, variable: str) -> None:
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise ConfigError(
            f"the {noun} {path} cannot be read: {error.strerror}",
            remedy=f"Set {variable} to a PEM file that the service's user may read.",
        ) from None
    if marker not in text:
        raise ConfigError(f"{path} holds no {noun} in PEM format", remedy=f"Set {variable} to a PEM file with one.")


def _refusal(context: ssl.SSLContext, certificate: Path) -> str:
    """Return why a client that trusts the certificate would refuse it now, or "" if it would not.

    Client and server are both in memory: Python has no other way to ask OpenSSL about a certificate's dates.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    for end in (client, context.wrap_bio(to_server, to_client, server_side=True), client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""
