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

    :param hypervisor: the kind that it is to boot on, ``kvm``, ``xen``.
    :param volumes: its disks; at a start they are active and not in use.
    :param folder: the clone's own folder for files that it is started from, at a start. Empty;
        files in it are kept until the clone is stopped, deleted or started again, and only then
        does somebody else remove them. None where nothing is started.
    :param networks: those of the host, as :meth:`NetworkInterface.inspect` tells them, for a
        provider that asks for them (:attr:`~vmcloner_core.hooks.BootBackend.networks`).
    :param dry_run: somebody wants to know, nothing is started: there is no ``folder``, fetch no
        files, say their ``origins``, and leave nothing behind (a lease).
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
    """Says what a clone boots: once, when its domain is defined, or at each start.

    A provider that reads what changes between starts (the guest's own disk, the network) names
    the kinds of hypervisor on which it is asked at each start in
    :attr:`~vmcloner_core.hooks.BootBackend.at_start`. There the definition stays a plain one, and
    what :meth:`resolve_start` says is booted once.
    """

    @abstractmethod
    def check(self, template: Template) -> None:
        """Check what the template says for this provider, before anything is made.

        :raises InvalidRequest: a key is missing, or a file that it names.
        """

    @abstractmethod
    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Yield what each clone's definition says that it boots; keys are the clones' names.

        Called before define. It reads neither the clones' disks nor the network: at that time a
        disk may not be active, and what was found would be stale at the next start.
        """

    def resolve_start(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Yield what each clone boots at the start that is about to be made; keys as above.

        Only on the kinds of hypervisor in ``BootBackend.at_start``. Files go into the request's
        ``folder``, and are made readable there by the user that runs guests: by mode 0644, or
        left to the hypervisor (libvirt hands files of mode 0600 over). What disks and servers say
        is hostile input: bound its size and the time it takes.
        """
        for request in requests:
            error = BackendError(f"{request.labels.boot}: can't be asked at a start")
            yield Outcome(key=request.labels.clone, error=error)
