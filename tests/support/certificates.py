"""Certificates for servers on this machine, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HAVE_OPENSSL = shutil.which("openssl") is not None


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for ``lab``, 127.0.0.1 and ::1; return it and its key as PEM files."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days=1"]
    names = ["-subj=/CN=lab", "-addext=subjectAltName=DNS:lab,IP:127.0.0.1,IP:::1"]
    subprocess.run(
        [*make, *names, "-keyout", key, "-out", certificate], check=True, stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return certificate, key


def make_signed_certificate(folder: Path, address: str) -> tuple[Path, Path, Path]:
    """Make a certificate for an IP address, signed by an authority that is made for it.

    Returns
    -------
    tuple of Path
        The authority's certificate, which clients must trust, the server's certificate, and its key, as PEM files.
    """
    authority, authority_key = folder / "authority.pem", folder / "authority-key.pem"
    certificate, key, request = folder / "server.pem", folder / "server-key.pem", folder / "server.csr"
    extensions = folder / "server.ext"
    extensions.write_text(f"subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    commands: list[list[str | Path]] = [
        ["req", "-x509", *new_key, "-days=2", "-subj=/CN=prism bench CA", "-keyout", authority_key, "-out", authority],
        ["req", *new_key, f"-subj=/CN={address}", "-keyout", key, "-out", request],
        ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-days=2",
         "-extfile", extensions, "-out", certificate],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(["openssl", *command], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return authority, certificate, key
