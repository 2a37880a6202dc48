"""Packages made for tests: any members, in any compression, sound or not."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Iterable
from pathlib import Path

from vmcloner_tiny.compression import zstd

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def file(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    archive = b"!<arch>\n"
    for name, content in members:
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


def deb(path: Path, data: bytes, suffix: str = ".xz") -> Path:
    """Write a package whose data archive is ``data``, compressed as its suffix says."""
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", lzma.compress(tar([file("./control", b"Package: x\n")]))),
        (f"data.tar{suffix}", COMPRESS[suffix](data)),
    ]
    path.write_bytes(ar(members))
    return path


def module(*depends: str) -> bytes:
    """Return what counts of a kernel module: its .modinfo, amid other bytes."""
    info = f"license=GPL\0depends={','.join(depends)}\0retpoline=Y\0name=x\0"
    return b"\x7fELF" + bytes(60) + info.encode() + bytes(40)
