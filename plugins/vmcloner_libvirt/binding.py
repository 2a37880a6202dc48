"""libvirt-python, loaded on first use: an optional dependency, compiled at installation."""

from __future__ import annotations

import functools
import importlib
import os
import threading
from typing import Any

from vmcloner_core.errors import BackendError

_loading = threading.Lock()


def _fork_off() -> None:
    """Have a free lock in a process that was forked off: its holder may be missing there."""
    global _loading  # noqa: PLW0603
    _loading = threading.Lock()


os.register_at_fork(after_in_child=_fork_off)


def libvirt() -> Any:
    """Return the module ``libvirt``, with its error output off and its event loop running.

    :raises BackendError: it isn't installed, or can't be loaded.
    """
    with _loading:
        return _load()


def libvirt_qemu() -> Any:
    """Return the module ``libvirt_qemu``, a part of libvirt-python: for QEMU's own interfaces."""
    libvirt()
    return importlib.import_module("libvirt_qemu")


@functools.cache
def _load() -> Any:
    try:
        module = importlib.import_module("libvirt")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise BackendError(
            "libvirt-python is not installed"
            if missing
            else f"libvirt-python can't be loaded: {error}",
            hint="pip install 'vmcloner[libvirt]' (needs libvirt-dev, pkg-config and gcc)",
        ) from error
    # By default libvirt prints every error to stderr, even handled ones.
    module.registerErrorHandler(lambda _context, _error: None, None)
    # Keepalive, which detects a hung daemon, needs an event loop, registered before the first
    # connection. If the embedding program registered one, that one stays in use.
    module.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(module,), name="libvirt-events", daemon=True).start()
    return module


def _run_events(module: Any) -> None:
    try:
        while True:
            module.virEventRunDefaultImpl()
    except module.libvirtError:  # another event loop is registered and serves the connections
        return
