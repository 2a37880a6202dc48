"""The contracts of backends: storage, hypervisor, boot and identity provider, image builder.

All of them are **batch-first**: a method takes many members and yields one :class:`Outcome` for
each, in any order, as soon as it is known. A member's failure is an outcome, never an exception,
and does not affect other members. An exception from a batch method means that the whole call
failed (no connection, pool gone).

All of them are **idempotent**: if there is nothing to change, they yield a success with
``changed=False``. Objects without our labels are never touched; if one has the name, the outcome
is a :class:`~vmcloner_core.errors.Conflict`.

All of them are **thread-safe**: the pipeline calls a method from up to ``Lane.concurrency``
threads at once, with at most ``Lane.batch`` members per call.

Foreign exceptions (libvirt's, the operating system's, a command's) are translated into
:mod:`vmcloner_core.errors` at this boundary. ``vmcloner_core.testing`` has conformance suites for
backends; docs/plugins.md shows how to write one.
"""

from vmcloner_core.drivers.boot import SHARED, BootProvider, BootRequest
from vmcloner_core.drivers.capture import CaptureInterface, CaptureRequest
from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.drivers.hypervisor import (
    NO_BOOTS,
    AgentInterface,
    ConsoleInterface,
    DisplayInterface,
    HypervisorDriver,
    MemoryInterface,
    NativeInterface,
    NetworkInterface,
    ResizeInterface,
    StatisticsInterface,
)
from vmcloner_core.drivers.identity import IdentityProvider, IdentityRequest
from vmcloner_core.drivers.image import ImageBuilder, image_cache
from vmcloner_core.drivers.image_record import ImageRecord
from vmcloner_core.drivers.snapshots import DiskSnapshotInterface, MachineInterface
from vmcloner_core.drivers.storage import ImageFile, SimpleStorageDriver, StorageDriver
from vmcloner_core.drivers.warm import WarmInterface

__all__ = [
    "NO_BOOTS",
    "SHARED",
    "AgentInterface",
    "BootProvider",
    "BootRequest",
    "CaptureInterface",
    "CaptureRequest",
    "ConsoleInterface",
    "DiskSnapshotInterface",
    "DisplayInterface",
    "DriverContext",
    "HypervisorDriver",
    "IdentityProvider",
    "IdentityRequest",
    "ImageBuilder",
    "ImageFile",
    "ImageRecord",
    "Lane",
    "MachineInterface",
    "MemoryInterface",
    "NativeInterface",
    "NetworkInterface",
    "ResizeInterface",
    "SimpleStorageDriver",
    "StatisticsInterface",
    "StorageDriver",
    "WarmInterface",
    "image_cache",
]
