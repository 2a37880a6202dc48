"""The memory of domains: paused, saved by libvirt ("managed save"), and forgotten.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainManagedSave
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vmcloner_core.drivers import MemoryInterface
from vmcloner_core.errors import WrongState
from vmcloner_core.model import Outcome, State
from vmcloner_libvirt import operations
from vmcloner_libvirt.conditions import state_of

Each = Callable[[Sequence[str], Callable[[Any, str], bool]], Iterator[Outcome[None]]]


class Memory(MemoryInterface):
    """The memory of one hypervisor's domains. Thread-safe.

    :param each: runs an operation on several domains; it tells whether it changed something.
    """

    def __init__(self, each: Each) -> None:
        self._each = each

    def pause(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.pause`."""
        yield from self._each(names, pause)

    def save(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.save`."""
        yield from self._each(names, save)

    def discard(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.discard`."""
        yield from self._each(names, discard)


def pause(connection: Any, name: str) -> bool:
    """Pause a domain; tell whether it ran."""
    domain, state = _known(connection, name)
    if state is State.PAUSED:
        return False
    _check(name, state, "paused", State.RUNNING)
    domain.suspend()
    return True


def save(connection: Any, name: str) -> bool:
    """Save a domain's memory; tell whether it ran."""
    domain, state = _known(connection, name)
    if state is State.SAVED:
        return False
    _check(name, state, "saved", State.RUNNING, State.PAUSED)
    if state is State.PAUSED and connection.getType() == "Xen":
        domain.resume()  # a guest of Xen's takes part in being saved
    domain.managedSave()
    return True


def discard(connection: Any, name: str) -> bool:
    """Remove a domain's saved memory; tell whether there was one."""
    domain = operations.find(connection, name)
    if domain is None:
        return False
    with operations.tolerate("VIR_ERR_NO_DOMAIN"):
        if domain.hasManagedSaveImage() == 1:
            domain.managedSaveRemove()
            return True
    return False


def _known(connection: Any, name: str) -> tuple[Any, State]:
    domain = operations.ours(connection, name)
    return domain, state_of(*domain.state(), saved=domain.hasManagedSaveImage() == 1)


def _check(name: str, state: State, what: str, *needed: State) -> None:
    if state not in needed:
        raise WrongState(
            f"{name} is {state.value}: it can't be {what}", hint=f"vmcloner start {name}"
        )
