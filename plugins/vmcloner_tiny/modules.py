"""Kernel modules: which ones are needed, in load order.

A module lists its dependencies in its ``.modinfo`` section, as ``depends=a,b`` (kernel,
scripts/mod/modpost.c, add_depends). Packages do not contain ``modules.dep``, and with this section
there is no need to unpack thousands of files for depmod.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vmcloner_core.errors import BackendError
from vmcloner_tiny.deb import Deb

MAX_MODULE = 16 * 1024**2
"""Bytes of one module."""
MAX_LIST = 1024**2
_PATH = re.compile(r"lib/modules/[^/]+/kernel/(?:[^/]+/)*([A-Za-z0-9_-]+)\.ko(?:\.(?:gz|xz|zst))?")
_BUILTIN = re.compile(r"lib/modules/[^/]+/modules\.builtin")
_DEPENDS = re.compile(rb"\0depends=([A-Za-z0-9_,-]*)\0")


def _normal(name: str) -> str:
    # A module's name has underscores where its file may have hyphens (kmod, libkmod).
    return name.replace("-", "_")


class ModuleTree:
    """The modules of a kernel's packages, by name. Reads a module only when it is needed."""

    def __init__(self, debs: Sequence[Deb]) -> None:
        self._files: dict[str, tuple[Deb, str]] = {}
        self._builtin: frozenset[str] = frozenset()
        for deb in debs:
            for path in deb:
                if match := _PATH.fullmatch(path):
                    self._files[_normal(match[1])] = (deb, path)
                elif _BUILTIN.fullmatch(path):
                    self._builtin |= _builtin(deb.read(path, MAX_LIST))

    def load(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """Return the wanted modules and their dependencies, uncompressed, in load order.

        Modules that are built into the kernel are left out.

        :raises BackendError: a module is missing, or depends on itself.
        """
        loaded: dict[str, bytes] = {}
        for name in wanted:
            self._load(_normal(name), loaded, ())
        return loaded

    def _load(self, name: str, loaded: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in loaded or name in self._builtin:
            return
        if name in above:
            raise BackendError(f"kernel module {name} depends on itself")
        if name not in self._files:
            raise BackendError(f"kernel module {name}: not in the kernel's packages")
        deb, path = self._files[name]
        content = deb.read(path, MAX_MODULE)
        for needed in _depends(name, content):
            self._load(needed, loaded, (*above, name))
        loaded[name] = content


def _depends(name: str, content: bytes) -> list[str]:
    match = _DEPENDS.search(content)
    if match is None:
        raise BackendError(f"kernel module {name}: has no list of dependencies")
    return [_normal(word) for word in match[1].decode("ascii").split(",") if word]


def _builtin(listing: bytes) -> frozenset[str]:
    """Return the names in a ``modules.builtin``: one path a line (kernel, Documentation/kbuild)."""
    paths = listing.decode("ascii", "replace").split()
    return frozenset(_normal(path.rpartition("/")[2].removesuffix(".ko")) for path in paths)
