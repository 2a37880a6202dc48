"""Reference drivers that several processes share: what they keep is in files, not in dictionaries.

A guest takes ``BOOT`` seconds to boot, so that what a pool saves can be measured without guests.
"""

import contextlib
import os
import pickle
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from vmcloner_core.hooks import HypervisorBackend, StorageBackend, hookimpl
from vmcloner_core.testing.reference import BootPlugin, ReferenceHypervisor, ReferenceStorage

FOLDER = Path(os.environ.get("SHARED_REFERENCE", "."))
BOOT = float(os.environ.get("SHARED_BOOT", "0"))


class Files(MutableMapping[str, Any]):
    """A dictionary whose values are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> Any:
        try:
            return pickle.loads((self.folder / key).read_bytes())
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        draft = self.folder / f".{key}.{os.getpid()}.{time.monotonic_ns()}"
        draft.write_bytes(pickle.dumps(value))
        draft.rename(self.folder / key)

    def __delitem__(self, key: str) -> None:
        try:
            (self.folder / key).unlink()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(p.name for p in self.folder.iterdir() if p.name[0] != "."))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def values(self) -> Any:  # what another process removes meanwhile is left out
        return [value for _, value in self.items()]

    def items(self) -> Any:
        found = []
        for key in self:
            with contextlib.suppress(KeyError):
                found.append((key, self[key]))
        return found


class SharedHypervisor(ReferenceHypervisor):
    """Keeps its domains in files."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.machines = Files(FOLDER / "machines")  # type: ignore[assignment]
        self.said = Files(FOLDER / "said")  # type: ignore[assignment]
        self.found = Files(FOLDER / "found")  # type: ignore[assignment]

    def start(self, names: Any, boots: Any = None) -> Any:
        """See :meth:`HypervisorDriver.start`."""
        time.sleep(BOOT)
        yield from super().start(names, boots or {})


class SharedStorage(ReferenceStorage):
    """Keeps its volumes in files."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for name in ("images", "disks", "contents"):
            setattr(self, name, Files(FOLDER / name))


class SharedPlugin:
    """Registers both as ``reference``."""

    @hookimpl
    def vmcloner_storage_backend(self) -> StorageBackend:
        """Register the storage."""
        return StorageBackend(api=1, name="reference", description="files", factory=SharedStorage)

    @hookimpl
    def vmcloner_hypervisor_backend(self) -> HypervisorBackend:
        """Register the hypervisor."""
        return HypervisorBackend(
            api=1, name="reference", description="files", factory=SharedHypervisor
        )


PLUGINS = (SharedPlugin(), BootPlugin())
