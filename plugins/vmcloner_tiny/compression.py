"""Decompress gzip, xz and zstd data from packages, up to a limit that the caller sets."""

from __future__ import annotations

import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, Any

from vmcloner_core.errors import BackendError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1024**2
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}


def unpack(name: str, source: IO[bytes], target: IO[bytes], limit: int) -> None:
    """Copy ``source`` to ``target``, decompressed according to the suffix of ``name``.

    :param limit: maximum number of uncompressed bytes.
    :raises BackendError: the data is larger than ``limit`` when uncompressed, or damaged.
    """
    opener = _OPENERS.get(PurePosixPath(name).suffix)
    stream: IO[bytes] = opener(source, "rb") if opener else source
    done = 0
    while chunk := _read(name, stream):
        done += len(chunk)
        if done > limit:
            raise BackendError(f"{name}: larger than {limit} bytes when unpacked")
        target.write(chunk)


def _read(name: str, stream: IO[bytes]) -> bytes:
    try:
        return stream.read(_CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        raise BackendError(f"{name}: damaged: {error}") from error
