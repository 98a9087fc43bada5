"""A certificate for a server on this machine, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HAVE_OPENSSL = shutil.which("openssl") is not None


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for ``lab`` and 127.0.0.1 that vouches for itself, and its key, as PEM files."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days=1"]
    names = ["-subj=/CN=lab", "-addext=subjectAltName=DNS:lab,IP:127.0.0.1"]
    subprocess.run(
        [*make, *names, "-keyout", key, "-out", certificate], check=True, stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return certificate, key
