"""Plugin ``faulty``: a storage backend that fails on demand."""

from __future__ import annotations

from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_core.testing.faulty import FaultySettings, storage


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="faulty",
        description="another backend, of which calls fail on demand; for tests",
        factory=storage,
        settings=FaultySettings,
    )
