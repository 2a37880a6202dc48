"""Which shapes of domains libvirt has validated, kept between runs.

libvirt compiles its schema for each domain that it validates, which takes as long as defining
twenty. Its answer depends on the XML and on the schema alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from vmcloner_core.errors import VmclonerError
from vmcloner_core.trusted_files import read_file, replacing

SCHEMAS = Path("/usr/share/libvirt/schemas")
KEPT = 500
"""Shapes that are kept: the last ones. Most hosts have a few."""


class Validated:
    """Shapes that one libvirt has validated. Thread-safe.

    :param file: where they are kept; what can't be kept there is validated again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def first(self, shape: str, version: Callable[[], int]) -> Iterator[bool]:
        """Tell whether a domain is the first of its shape, so that libvirt must validate it.

        Others of the shape wait for the end of the block, which notes it unless it raises.

        :param version: returns libvirt's version.
        """
        with self._lock:
            if shape not in self._known:
                key, kept = _key(shape, version()), self._kept()
                if key not in kept:
                    yield True
                    self._known.add(shape)
                    self._keep([*kept, key][-KEPT:])
                    return
                self._known.add(shape)
        yield False

    def _kept(self) -> list[str]:
        try:
            return [str(key) for key in json.loads(read_file(self._file, trusted=False))]
        except (VmclonerError, ValueError, TypeError, RecursionError):
            return []  # missing or damaged

    def _keep(self, keys: list[str]) -> None:
        with contextlib.suppress(OSError), replacing(self._file, 0o600, lasting=False) as stream:
            stream.write(json.dumps(keys).encode())


def _key(shape: str, version: int) -> str:
    try:
        schema = SCHEMAS.stat().st_mtime_ns  # a file in it was replaced
    except OSError:
        schema = 0
    return hashlib.sha256(f"{version} {schema} {shape}".encode()).hexdigest()
