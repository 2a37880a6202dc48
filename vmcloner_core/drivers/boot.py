"""The contract of boot providers."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.errors import BackendError
from vmcloner_core.model import BootConfig, Labels, Network, Nic, Outcome, Template, Volume

SHARED = "shared"
"""The folder beside clones' own ones for files that several clones have.

A clone has such a file as a hard link in its own folder. Files that no clone has are removed when a
run starts; so are files whose names begin with a dot, once nobody has written them for an hour.
"""


@attrs.frozen(kw_only=True)
class BootRequest:
    """One clone that a boot provider is asked about.

    :param hypervisor: the kind that it boots on, ``kvm``, ``xen``.
    :param volumes: its disks; at a start they are active and not in use.
    :param folder: at a start, the clone's own empty folder for files to start from. The engine
        keeps them until the clone is stopped, deleted or started again. Otherwise None.
    :param networks: the host's, from :meth:`NetworkInterface.inspect`, for a provider that
        declares :attr:`~vmcloner_core.hooks.BootBackend.networks`.
    :param dry_run: nothing is started: there is no ``folder``. Fetch no files, return their
        ``origins``, and leave nothing behind (like a lease).
    """

    labels: Labels
    template: Template
    hypervisor: str
    uuid: uuid.UUID
    volumes: tuple[Volume, ...]
    nics: tuple[Nic, ...]
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    folder: Path | None = None
    networks: tuple[Network, ...] | None = None
    dry_run: bool = False


class BootProvider(ABC):
    """Decides what a clone boots: once, when its domain is defined, or at each start.

    A provider that reads what changes between starts (the guest's own disk, the network) lists in
    :attr:`~vmcloner_core.hooks.BootBackend.at_start` the kinds of hypervisor on which it is asked
    at each start. There the definition stays unchanged, and the clone boots once what
    :meth:`resolve_start` returns.
    """

    @abstractmethod
    def check(self, template: Template) -> None:
        """Check the template's keys for this provider, before anything is made.

        :raises InvalidRequest: a key, or a file that it names, is missing.
        """

    def unused(self, template: Template) -> tuple[str, ...]:  # noqa: ARG002 - for overriding it
        """Return the keys that a template sets and this provider ignores (``kernel.initrd``)."""
        return ()

    @abstractmethod
    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Yield what each clone boots by its definition; keys are the clones' names.

        Called before define. Must not read the clones' disks or the network: disks may not be
        active then, and the result would be stale at the next start.
        """

    def resolve_start(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Yield what each clone boots at the coming start; keys are the clones' names.

        Only on the kinds of hypervisor in ``BootBackend.at_start``. Files go into the request's
        ``folder`` and must be readable by the user that runs guests: with mode 0644, or through
        the hypervisor (libvirt changes the owner of files with mode 0600). What disks and servers
        return is hostile input: limit its size and the time it takes.
        """
        for request in requests:
            error = BackendError(f"boot provider {request.labels.boot} can't be asked at a start")
            yield Outcome(key=request.labels.clone, error=error)
