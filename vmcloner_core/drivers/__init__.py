"""The contracts of backends: storage, hypervisor, boot and identity provider, image builder.

All of them are **batch-first**: a method takes many and yields one :class:`Outcome` for each, in
any order, as soon as it is known; a member's failure is an outcome, never an exception, and never
keeps another member from being done. An exception out of a batch method means that the whole call
could not be made (no connection, pool gone).

All of them are **idempotent**: asked for what is already so, they yield a success with
``changed=False``. What lacks our labels is never touched: a name taken by it is a
:class:`~vmcloner_core.errors.Conflict`.

All of them are **thread-safe**: the executor calls a method from up to ``Lane.concurrency``
threads at once, with at most ``Lane.batch`` members a call.

Foreign exceptions (libvirt's, the operating system's, a command's) are translated into
:mod:`vmcloner_core.errors` at this boundary. ``vmcloner_core.testing`` has the conformance
suites that prove a backend right; docs/plugins.md walks through writing one.
"""

from vmcloner_core.drivers.boot import SHARED, BootProvider, BootRequest
from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.drivers.hypervisor import (
    NO_BOOTS,
    AgentInterface,
    ConsoleInterface,
    HypervisorDriver,
    NativeInterface,
    NetworkInterface,
)
from vmcloner_core.drivers.identity import IdentityProvider, IdentityRequest
from vmcloner_core.drivers.image import ImageBuilder
from vmcloner_core.drivers.storage import ImageFile, SimpleStorageDriver, StorageDriver

__all__ = [
    "NO_BOOTS",
    "SHARED",
    "AgentInterface",
    "BootProvider",
    "BootRequest",
    "ConsoleInterface",
    "DriverContext",
    "HypervisorDriver",
    "IdentityProvider",
    "IdentityRequest",
    "ImageBuilder",
    "ImageFile",
    "Lane",
    "NativeInterface",
    "NetworkInterface",
    "SimpleStorageDriver",
    "StorageDriver",
]
