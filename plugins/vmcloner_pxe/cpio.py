"""Archives as iPXE makes them of an initrd with a path: one file, for the kernel to unpack.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from typing import BinaryIO, cast

_PATH = re.compile(r"/[\x21-\x7e]{0,254}[^/\s]")
_FILE, _FOLDER = 0o100000, 0o040755
_OPTION = re.compile(r"mode=([0-7]{1,4})|mkdir=(-1|[0-9]{1,2})")


def understood(arguments: str) -> bool:
    """Tell whether these are arguments of an initrd that :func:`archive` can put into practice."""
    path, *options = arguments.split()
    return bool(_PATH.fullmatch(path)) and all(map(_OPTION.fullmatch, options))


def archive(content: BinaryIO, arguments: str) -> BinaryIO:
    """Return an open archive with a file; closes the file that its content comes from.

    :param arguments: its path, and ``mode=`` and ``mkdir=`` as iPXE understands them.
    """
    with content:
        size = os.fstat(content.fileno()).st_size
        made = cast(BinaryIO, tempfile.TemporaryFile(buffering=1024**2))  # noqa: SIM115
        try:
            made.write(_headers(arguments, size))
            content.seek(0)
            shutil.copyfileobj(content, made, 1024**2)
            made.write(bytes(-made.tell() % 4))
            made.flush()
        except BaseException:
            made.close()
            raise
    return made


def _headers(arguments: str, size: int) -> bytes:
    """Return the headers of the folders to make, and of the file."""
    path, *options = arguments.split()
    mode, folders = 0o644, 0
    for option in options:
        name, _, value = option.partition("=")
        if name == "mode":
            mode = int(value, 8)
        else:
            folders = int(value)
    parents = [path[: match.start()] for match in re.finditer("/", path)][1:]
    wanted = parents if folders < 0 else parents[len(parents) - min(folders, len(parents)) :]
    made = b"".join(_header(parent, _FOLDER, 0) for parent in wanted)
    return made + _header(path, _FILE | mode, size)


def _header(name: str, mode: int, size: int) -> bytes:
    data = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(data), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + data
    return header + bytes(-len(header) % 4)
