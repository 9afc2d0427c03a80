"""Certificates for tests, made by the `openssl` program: self-signed, for localhost and 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

KINDS = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"], "rsa": ["rsa:2048"]}


def make(openssl: str, folder: Path, name: str, *, kind: str = "ec", days: int = 30) -> tuple[Path, Path]:
    """A certificate whose subject is `name`, and its key. It has expired already where `days` is negative."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [openssl, "req", "-x509", "-newkey", *KINDS[kind], "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    again = [
        openssl,
        "x509",
        "-in",
        str(certificate),
        "-signkey",
        str(key),
        "-days",
        str(days),
        "-out",
        str(certificate),
    ]
    subprocess.run(again, check=True, capture_output=True)
    return certificate, key


def put(pair: tuple[Path, Path], place: tuple[Path, Path]) -> None:
    """Replace the files at `place` by copies of a pair, each in one step, as renewals do."""
    for source, target in zip(pair, place, strict=True):
        temporary = target.with_suffix(".new")
        temporary.write_bytes(source.read_bytes())
        os.replace(temporary, target)  # noqa: PTH105 - the same, and says what it does
