"""Read what packages compress with gzip, xz or zstd, and never more than a caller allows."""

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
    """Copy ``source`` to ``target``, uncompressed as the suffix of ``name`` tells.

    :param limit: bytes that may come out.
    :raises BackendError: more would come out, or the data is damaged.
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
