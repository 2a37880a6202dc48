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

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import attrs

from vmcloner_core.errors import BackendError, InvalidRequest, VmclonerError, WrongState
from vmcloner_core.model import (
    AS_IT_COMES,
    BootConfig,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Domain,
    DomainInventory,
    DomainSpec,
    Host,
    HostResources,
    Identity,
    Labels,
    Network,
    NetworkChange,
    NetworkRequest,
    Nic,
    Origin,
    Outcome,
    Progress,
    Seed,
    State,
    Template,
    Volume,
)
from vmcloner_core.process import CommandRunner


@attrs.frozen(kw_only=True)
class Lane:
    """How the executor may call one method: members a call, and calls at once."""

    batch: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    concurrency: int = attrs.field(default=1, validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class DriverContext:
    """What every driver is made with.

    :param name: the backend's name in the settings (a pool's: ``fast``), which labels carry.
    :param runner: runs commands on that host.
    """

    host: Host
    name: str
    runner: CommandRunner


@attrs.frozen(kw_only=True)
class ImageFile:
    """A disk image that was checked: it is of its format, whole, and names no other file.

    :param size: virtual bytes. :param digest: ``sha256:…`` of the source, or of what it was
        built from: equal digests mean that a pool need not import it again.
    """

    path: Path
    format: Literal["raw", "qcow2"]
    size: int
    digest: str


class StorageDriver(ABC):
    """Keeps templates' images (origins) and clones' disks (volumes) in one pool of one host.

    Labels are stored with a volume in the same step that makes it: there is no moment at which a
    crash leaves a volume without labels under its final name.

    Example::

        class DirectoryDriver(SimpleStorageDriver):
            def clone_one(self, request):
                path = self.folder / request.volume_name
                ...
                return Outcome(key=request.volume_name, value=volume)
    """

    clone_lane = Lane()
    reset_lane = Lane()
    delete_lane = Lane()
    modes: frozenset[CloneMode] = frozenset(CloneMode)
    """The clone modes that the pool supports. FULL clones are copies, LINKED ones copy nothing."""
    copies = True
    """Whether imports and FULL clones honour :class:`~vmcloner_core.model.Copying`.

    False declares that the pool copies no bytes by itself, and so has nothing to pace or verify.
    """

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        self.name = context.name

    @abstractmethod
    def probe(self) -> Iterator[Check]:
        """Yield what this backend needs of its host and whether it is there. Changes nothing.

        Never raises: what is missing is a FAILED check with its fix.
        """

    @abstractmethod
    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Bring an image into the pool as the template's origin, read-only.

        Idempotent by ``image.digest``. An origin with another digest is replaced, and only while
        no volume is linked to it. An interrupted import leaves nothing under the origin's name.

        :raises WrongState: clones are linked to the origin that would be replaced.
        :raises NotEnoughResources: no room in the pool; the message says how much is needed.
        """

    @abstractmethod
    def origins(self) -> tuple[Origin, ...]:
        """Return the pool's origins, by template name."""

    @abstractmethod
    def delete_origin(self, template: str) -> Outcome[None]:
        """Remove a template's origin; success with ``changed=False`` where there is none.

        :raises WrongState: clones are linked to it.
        """

    @abstractmethod
    def clone(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """Make volumes; keys are the volumes' names (``request.volume_name``).

        A volume of that name with labels of the same clone is that volume (``changed=False``, its
        labels as they are). One of another clone, template or without labels is a Conflict.
        A ``size`` above the origin's gives a larger disk; below it is InvalidRequest. A request
        without an origin gives ``size`` bytes of zeros with ``head`` at their start, raw.
        A pool may round sizes up. A pool that takes time to fill a volume may leave it incomplete
        when it is killed (``Volume.complete``), under its name and with its labels; it isn't
        activated then, and the same request goes on with it.
        """

    @abstractmethod
    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Remove volumes; keys are the volumes' names. What is gone is a success.

        A volume whose labels on the host are not ``volume.labels``' clone is a Conflict; one
        that is in use is WrongState and names its user where the host can tell.
        """

    def reset(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """Make volumes anew, as :meth:`clone` would, in the place of those of their names.

        Keys are the volumes' names. What is replaced keeps its labels, its path, and the manner in
        which it was made (its format); what is missing is made. Errors are those of :meth:`clone`
        and :meth:`delete`: of another clone is a Conflict, in use is WrongState. Should the host
        die at any moment, the same call again finishes the work.

        This one deletes and clones. A backend that can replace a volume in one step overrides it.
        """
        found = {volume.name: volume for volume in self.volumes()}
        there = [
            attrs.evolve(found[r.volume_name], labels=r.labels)
            for r in requests
            if r.volume_name in found
        ]
        kept = set()
        for outcome in self.delete(there):
            if outcome.error is not None:
                kept.add(outcome.key)
                yield Outcome(key=outcome.key, error=outcome.error)
        yield from self.clone(
            [
                attrs.evolve(r, labels=found[r.volume_name].labels) if r.volume_name in found else r
                for r in requests
                if r.volume_name not in kept
            ]
        )

    @abstractmethod
    def volumes(self) -> tuple[Volume, ...]:
        """Return all volumes of the pool that carry our labels.

        One whose name isn't that of a disk of its labels' clone
        (:func:`~vmcloner_core.names.split_volume`) is somebody's copy, not ours.
        """

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return what the pool holds, and what limits it beside bytes."""

    @abstractmethod
    def need(self, request: CloneRequest, count: int) -> int:
        """Return the bytes that ``count`` volumes like this take at the moment they are made."""

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Make volumes usable before their domains start; keys are the volumes' names.

        An incomplete volume is WrongState.
        """
        for volume in volumes:
            error = None
            if not volume.complete:
                error = WrongState(
                    f"volume {volume.path} is incomplete: its copy was interrupted",
                    hint="run its create again to resume the copy",
                )
            yield Outcome(key=volume.name, error=error, changed=False)

    def deactivate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Undo :meth:`activate` once their domains have stopped; keys are the volumes' names."""
        for volume in volumes:
            yield Outcome(key=volume.name, changed=False)

    def close(self) -> None:
        """Release what the driver holds. It isn't used afterwards."""


class SimpleStorageDriver(StorageDriver):
    """Base for a backend that works one volume at a time: turns that into batches."""

    @abstractmethod
    def clone_one(self, request: CloneRequest) -> Outcome[Volume]:
        """Make one volume, as :meth:`StorageDriver.clone`; may raise VmclonerError."""

    @abstractmethod
    def delete_one(self, volume: Volume) -> Outcome[None]:
        """Remove one volume, as :meth:`StorageDriver.delete`; may raise VmclonerError."""

    def clone(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """Make volumes one after the other."""
        for request in requests:
            try:
                yield self.clone_one(request)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Remove volumes one after the other."""
        for volume in volumes:
            try:
                yield self.delete_one(volume)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)


NO_BOOTS: Mapping[str, BootConfig] = MappingProxyType({})


class HypervisorDriver(ABC):
    """Defines and runs domains on one host. Keys of outcomes are the domains' names.

    The methods that take names resolve them among *our* domains: a foreign domain of that name
    is a Conflict.
    """

    kind = ""
    """What templates and boot providers call it: ``kvm``, ``xen``."""
    mac_prefix = "52:54:00"
    one_shot = False
    """Whether :meth:`start` can boot a domain once from something else than its definition says."""
    define_lane = Lane()
    start_lane = Lane()
    stop_lane = Lane()
    undefine_lane = Lane()

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        self.name = context.name

    @abstractmethod
    def probe(self) -> Iterator[Check]:
        """Yield what this backend needs of its host; see :meth:`StorageDriver.probe`."""

    def check(self, template: Template) -> None:
        """Check what the template says for this hypervisor, before anything is made.

        :raises InvalidRequest: names the key, and what the hypervisor takes there.
        """

    @abstractmethod
    def inspect(self) -> DomainInventory:
        """Return our domains, and the names and MAC addresses of all others."""

    @abstractmethod
    def states(self) -> Mapping[str, State]:
        """Return the state of every domain of ours by name: the cheap way to poll."""

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Return the addresses of our domains that are known by now, the one to be used first.

        Cheap enough to be polled. A domain without a known address may be left out.
        """
        return {}

    def networks(self) -> tuple[Network, ...] | None:
        """Return the networks that cards can be on by name; None where the backend can't tell."""
        return None

    def prepare_network(self, request: NetworkRequest) -> NetworkChange:
        """Have a network of vmcloner's own, running and with an address range that fits.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: the name or the subnet is taken. :raises NotEnoughResources: too many.
        :raises WrongState: it would have to be changed while guests are on it.
        :raises BackendError: this backend makes no networks.
        """
        raise BackendError(
            f"{self.name} makes no networks, so none for {request.name!r}",
            hint="choose another hypervisor by --engine",
        )

    def remove_network(self, request: NetworkRequest) -> NetworkChange:
        """Take away what :meth:`prepare_network` made; ``count`` and ``subnet`` don't matter.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: it isn't vmcloner's. :raises WrongState: guests are on it.
        :raises BackendError: this backend makes no networks.
        """
        raise BackendError(
            f"{self.name} makes no networks, so {request.name!r} is none of its",
            hint="choose another hypervisor by --engine",
        )

    def agents(self, names: Sequence[str]) -> frozenset[str]:
        """Return those of our domains whose guest agent has reported to the host.

        Cheap enough to be polled.

        :raises BackendError: this backend knows no guest agents.
        """
        raise BackendError(
            f"{self.name} knows nothing of guest agents",
            hint=f"wait for something else of {names[0]}",
        )

    @abstractmethod
    def resources(self) -> HostResources:
        """Return the host's memory and processors."""

    @abstractmethod
    def render(self, spec: DomainSpec) -> str:
        """Return the domain XML (or the backend's like) that ``define`` would use.

        :raises InvalidRequest: the template's own XML can't be rendered.
        """

    def native(self, spec: DomainSpec) -> str:
        """Return the domain in the format of the hypervisor's own toolstack (Xen's: ``xl.cfg``).

        :raises InvalidRequest: it has none.
        """
        raise InvalidRequest(
            f"{spec.name}: hypervisor {self.name!r} has no such format",
            hint=f"vmcloner show {spec.name} --xml",
        )

    @abstractmethod
    def define(self, specs: Sequence[DomainSpec]) -> Iterator[Outcome[Domain]]:
        """Make domains known to the host, validated, with their labels, not started.

        A domain of that name with labels of the same clone is left as it is
        (``changed=False``); any other is a Conflict.
        """

    @abstractmethod
    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """Start domains; a running one is a success, one that isn't defined NotFound.

        A paused domain is resumed.

        :param boots: by name, what a domain boots at this one start. Its definition stays as it
            is. Given only to drivers that are :attr:`one_shot`.
        """

    @abstractmethod
    def shutdown(self, names: Sequence[str], timeout: float) -> Iterator[Outcome[None]]:
        """Ask the guests to shut down; destroy those that still run after ``timeout`` seconds.

        A domain that isn't running, or is gone, is a success.
        """

    @abstractmethod
    def destroy(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Stop domains at once; one that isn't running, or is gone, is a success."""

    @abstractmethod
    def undefine(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Forget stopped domains, with their NVRAM and console logs; one that is gone is a success.

        A running one is WrongState.
        """

    def console_log(self, name: str) -> Path:
        """Return where the host keeps what a domain of ours writes to its console."""
        return self.context.host.consoles / f"{name}.log"

    @abstractmethod
    def read_console(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Return what the guest wrote to its serial console, and the offset to go on from.

        At most ``limit`` bytes from ``offset``. Logs start afresh at each start of the domain and
        when they are rotated: an offset beyond the log's end starts again at 0. Empty at the log's
        end, and where there is no log (yet).
        """

    @abstractmethod
    def attach_console(self, name: str, stdin: int, stdout: int) -> None:
        """Connect two file descriptors with the console until the guest or ``^]`` ends it.

        :raises NotFound: no such domain of ours. :raises WrongState: it isn't running.
        """

    def close(self) -> None:
        """Release what the driver holds. It isn't used afterwards."""


@attrs.frozen(kw_only=True)
class BootRequest:
    """One clone that a boot provider is asked about.

    :param hypervisor: the kind that it is to boot on, ``kvm``, ``xen``.
    :param volumes: its disks; at a start they are active and not in use.
    :param folder: the clone's own folder for files that it is started from, at a start. Empty;
        files in it are kept until the clone is stopped, deleted or started again, and only then
        does somebody else remove them. None where nothing is started.
    :param networks: tells the networks that its cards may be on by name, as
        :meth:`HypervisorDriver.networks` does; it asks the hypervisor.
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
    networks: Callable[[], tuple[Network, ...] | None] = attrs.field(
        default=lambda: None, eq=False, repr=False
    )
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


@attrs.frozen(kw_only=True)
class IdentityRequest:
    """One clone that an identity provider makes a seed for.

    :param folder: the clone's own folder for the seed's files; it holds nothing of the provider's
        but what an earlier call for the same clone may have left. It goes with the clone.
    :param host_key: the guest's SSH host key (ed25519), private, in OpenSSH's format: a secret.
    :param host_key_public: the same, as a line of ``ssh_host_ed25519_key.pub``.
    """

    labels: Labels
    template: Template
    identity: Identity
    nics: tuple[Nic, ...]
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    folder: Path
    host_key: str = attrs.field(repr=False)
    host_key_public: str


class IdentityProvider(ABC):
    """Brings a clone's identity into its guest.

    Who a clone is, is decided by the engine (:class:`~vmcloner_core.model.Identity`), which also
    keeps the folder with the clone's labels and removes it with the clone: a provider only writes
    a seed, files that no one but their owner can read where there are secrets in them.

    Example::

        class PlainText(IdentityProvider):
            def check(self, template): ...

            def seed(self, requests):
                for request in requests:
                    image = request.folder / "seed.img"
                    image.write_text(request.identity.hostname.ljust(512))
                    yield Outcome(key=request.labels.clone, value=Seed(image=image))
    """

    seeds = True
    """False for a provider that leaves its clones as they are: none of them has a folder."""

    @abstractmethod
    def check(self, template: Template) -> None:
        """Check what the template says for this provider, before anything is made.

        :raises InvalidRequest: a key is wrong, or a file that it names.
        """

    def check_seed(self, request: IdentityRequest) -> None:
        """Check what a clone's seed is made of, before anything is made. Writes nothing.

        :param request: of a run's first clone, with a host key that is nobody's; its folder isn't
            there.
        :raises InvalidRequest: a text can't be filled in, or what comes out isn't what it must be.
        """

    @abstractmethod
    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """Make the clones' seeds, before their domains are defined; keys are the clones' names.

        A seed that is there from an earlier call is replaced: no domain uses it yet.
        """


class ImageBuilder(ABC):
    """Makes a template's image, and what boots it, on the spot."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that changes whenever :meth:`build` would make something else."""

    @abstractmethod
    def build(self, folder: Path, progress: Progress) -> Path:
        """Fill an empty folder (the disk image; kernel and initrd as the template names them).

        :returns: the disk image in that folder, raw (``*.raw``) or qcow2 (``*.qcow2``).
        :raises BackendError: a tool or a package is missing.
        """
