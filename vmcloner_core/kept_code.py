"""What libraries write as source and compile at each start: compiled once, kept for later starts.

attrs writes the methods of each class as text and compiles it while a module is imported, cattrs
what reads settings; Python keeps only what is in modules' own files. This took a sixth of a create.
What a text compiles to depends on nothing but the text, its file name and Python, so it is kept by
these.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import marshal
import os
import re
import sys
import zlib
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from vmcloner_core import user_folders
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.trusted_files import check_folder, make_folder, read_file, replacing

MAX_KEPT = 4 * 1024**2
"""Bytes of the file. What is no longer used stays in it, so once it is larger it begins anew."""
_compile = compile
_SALT = re.compile(r"(?<=hash\(\()\s*-?\d+")
"""A number in each ``__hash__`` of attrs', another in each process: any does, if it stays there."""


def own_folder() -> Path:
    """Return the folder for the code of this user and this Python."""
    python = f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"
    return user_folders.cache() / "code" / f"{python}-{sys.flags.optimize}"


class KeptCode:
    """Compiled code in a file of a folder that only this user can write to. Thread-safe.

    Where it can't be read, code is compiled; where it can't be written, it isn't kept.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "kept"
        self._new = False

    def begin(self) -> None:
        """Be what is :data:`used` in this process, by attrs to begin with."""
        global used  # noqa: PLW0603
        used = self
        builtins.compile = self.compile
        try:  # it makes classes of its own while it is imported
            import attr._make
        finally:
            builtins.compile = _compile
        self.serve(attr._make)

    def serve(self, module: ModuleType) -> None:
        """Have a module that compiles what it writes ask :meth:`compile`.

        Where it doesn't use that name, code is compiled as before.
        """
        module.compile = self.compile  # type: ignore[attr-defined]

    @functools.cached_property
    def _codes(self) -> dict[str, bytes]:
        """What is kept, by what it was compiled from."""
        with contextlib.suppress(InvalidRequest, OSError):
            if self._is_own():
                content = read_file(self._file, trusted=True, limit=MAX_KEPT)
                # A disk that fails may change any byte; marshal would crash, or return other code.
                if content[:_SUM] == _sum(content[_SUM:]):
                    return dict(marshal.loads(content[_SUM:]))  # noqa: S302 - only this user wrote it
        return {}

    def compile(self, source: Any, filename: Any, mode: str, *more: Any, **options: Any) -> Any:
        """Return what Python's own ``compile`` does."""
        if not isinstance(source, str) or more or options:
            return _compile(source, filename, mode, *more, **options)
        key = f"{mode}\0{filename}\0{_SALT.sub('', source)}"
        code = self.find(key)
        if code is None:
            code = _compile(source, filename, mode)
            self.add(key, code)
        return code

    def find(self, key: str) -> CodeType | None:
        """Return the code that is kept for what it was made from."""
        kept = self._codes.get(key)
        return None if kept is None else marshal.loads(kept)  # noqa: S302 - only this user wrote it

    def add(self, key: str, code: CodeType) -> None:
        """Keep code.

        :param key: all that it depends on but Python.
        """
        self._codes[key] = marshal.dumps(code)
        self._new = True

    def save(self) -> None:
        """Write what is new; not where Python was told to write no bytecode."""
        if not self._new or sys.dont_write_bytecode:
            return
        with contextlib.suppress(OSError, InvalidRequest):
            if self._is_own():
                make_folder(self._file.parent)
                with replacing(self._file, 0o600, lasting=False) as stream:
                    content = marshal.dumps(self._codes)
                    stream.write(_sum(content) + content)
                self._new = False

    def _is_own(self) -> bool:
        """Tell whether the folder is this user's: under sudo the home may be another's.

        :raises InvalidRequest: others can write there. :raises OSError: it can't be looked at.
        """
        if not self._file.is_absolute():  # a variable says so, or there is no home
            return False
        there = next(place for place in self._file.parents if place.exists())
        check_folder(there)
        return there.stat().st_uid == os.geteuid()


_SUM = 4
"""Bytes of the file's checksum, which it begins with."""


def _sum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_SUM, "big")


used: KeptCode | None = None
"""What the program keeps; None in other processes, which keep nothing."""
