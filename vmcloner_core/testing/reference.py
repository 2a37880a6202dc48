"""Reference drivers: the contracts implemented in memory, for tests of code that uses drivers.

They keep nothing outside the process and boot nothing. Pass them to an engine in your tests::

    pool, machines = StoragePlugin(), HypervisorPlugin()
    engine = Engine.open(config=settings, plugins=[pool, machines, BootPlugin()])

with settings whose defaults are ``storage = "reference"`` and ``hypervisor = "reference"``, and a
template with ``hypervisors = ["reference"]`` and ``boot = "reference"``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from vmcloner_core.drivers import (
    NO_BOOTS,
    BootProvider,
    BootRequest,
    ConsoleInterface,
    DiskSnapshotInterface,
    DriverContext,
    HypervisorDriver,
    ImageFile,
    Lane,
    MachineInterface,
    MemoryInterface,
    ResizeInterface,
    SimpleStorageDriver,
    StatisticsInterface,
    WarmInterface,
)
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, VmclonerError, WrongState
from vmcloner_core.hooks import BootBackend, HypervisorBackend, NoSettings, StorageBackend, hookimpl
from vmcloner_core.model import (
    AS_IT_COMES,
    BootConfig,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    DiskSnapshot,
    Domain,
    DomainInventory,
    DomainSpec,
    HostResources,
    Labels,
    Origin,
    Outcome,
    Progress,
    SnapshotLabels,
    SnapshotRequest,
    State,
    Statistics,
    Status,
    Template,
    Volume,
    VolumeProgress,
    untold,
)

GIB = 1024**3


class ReferenceStorage(SimpleStorageDriver):
    """Keeps origins, volumes and their bytes in dictionaries.

    ``contents`` has a volume's bytes without zeros at its end. ``foreign`` are names of volumes
    that aren't ours, ``busy`` those of volumes in use. ``copyings`` are the copy options of all
    imports and clones.
    ``fail`` maps the name of a volume, or of a clone for its first, to the error of its next
    ``clone``.
    """

    clone_lane = Lane(batch=4)
    copies = False

    def __init__(self, context: DriverContext, _settings: NoSettings) -> None:
        super().__init__(context)
        self.lock = threading.Lock()
        self.images: dict[str, Origin] = {}
        self.disks: dict[str, Volume] = {}
        self.contents: dict[str, bytes] = {}
        self.snapshots = ReferenceSnapshots(self)
        self.foreign: set[str] = set()
        self.busy: set[str] = set()
        self.copyings: list[Copying] = []
        self.fail: dict[str, VmclonerError] = {}
        self.free = 1024 * GIB
        self.volumes_free: int | None = None
        self.warnings: tuple[str, ...] = ()

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        yield Check(backend=self.name, name="memory", status=Status.OK)

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`."""
        with self.lock:
            self.copyings.append(copying)
            held = self.images.get(template)
            if held is not None and held.digest == image.digest:
                return Outcome(key=template, value=held, changed=False)
            self._check_unused(template)
            progress(image.size, image.size)
            origin = Origin(
                template=template,
                pool=self.name,
                size=image.size,
                allocated=image.size,
                digest=image.digest,
            )
            self.images[template] = origin
            self.contents[f"image {template}"] = image.path.read_bytes()
            return Outcome(key=template, value=origin)

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        return tuple(self.images.values())

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`."""
        with self.lock:
            self._check_unused(template)
            return Outcome(key=template, changed=self.images.pop(template, None) is not None)

    def _check_unused(self, template: str) -> None:
        users = [
            volume.labels.clone
            for volume in self.disks.values()
            if volume.labels.image == template and volume.disk == 0
        ]
        if users:
            raise WrongState(f"clones are linked to {template}: {users[0]}")

    def clone(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        for outcome in super().clone(requests):
            if outcome.value is not None and outcome.changed:
                progress(outcome.key, outcome.value.size, outcome.value.size)
            yield outcome

    def clone_one(self, request: CloneRequest) -> Outcome[Volume]:
        """See :meth:`StorageDriver.clone`."""
        name = request.volume_name
        with self.lock:
            for failing in (name, *([request.labels.clone] if request.disk == 0 else [])):
                if failing in self.fail:
                    raise self.fail.pop(failing)
            held = self.held(name, request.labels)
            if held is not None:
                return Outcome(key=name, value=held, changed=False)
            size, content = self._content(request)
            self.copyings.append(request.copying)
            volume = Volume(
                name=name,
                pool=self.name,
                labels=request.labels,
                path=Path("/reference") / name,
                size=size,
            )
            self.disks[name] = volume
            self.contents[name] = content
            return Outcome(key=name, value=volume)

    def held(self, name: str, labels: Labels) -> Volume | None:
        """Return a clone's volume, None if it isn't there; the caller holds the lock."""
        held = self.disks.get(name)
        if name in self.foreign:
            raise Conflict(f"volume {name} isn't vmcloner's")
        if held is not None and not held.labels.same_clone(labels):
            raise Conflict(f"volume {name} belongs to another clone")
        return held

    def _content(self, request: CloneRequest) -> tuple[int, bytes]:
        """Return a new volume's size and its first bytes."""
        origin = request.origin
        if origin is None:
            return request.size or 0, request.head
        if self.images.get(origin.template) != origin:
            raise NotFound(f"template {origin.template} has no such image")
        size = request.size or origin.size
        if size < origin.size:
            raise InvalidRequest(f"{request.volume_name}: a disk can't be smaller than its image")
        return size, self.contents[f"image {origin.template}"]

    def delete_one(self, volume: Volume) -> Outcome[None]:
        """See :meth:`StorageDriver.delete`."""
        name = volume.name
        with self.lock:
            if self.held(name, volume.labels) is not None and name in self.busy:
                raise WrongState(f"volume {name} is in use")
            self.contents.pop(name, None)
            return Outcome(key=name, changed=self.disks.pop(name, None) is not None)

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.grow`."""
        for volume in volumes:
            try:
                yield self._grown(volume, size)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    def _grown(self, volume: Volume, size: int) -> Outcome[Volume]:
        with self.lock:
            held = self.held(volume.name, volume.labels)
            if held is None:
                raise NotFound(f"no volume {volume.name}")
            new = attrs.evolve(held, size=max(size, held.size))
            self.disks[volume.name] = new
            return Outcome(key=volume.name, value=new, changed=new != held)

    def hand_over(self, volumes: Sequence[Volume], state: str) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.hand_over`."""
        for volume in volumes:
            try:
                with self.lock:
                    held = self.held(volume.name, volume.labels)
                    if held is None:
                        raise NotFound(f"no volume {volume.name}")
                    new = attrs.evolve(held, labels=attrs.evolve(held.labels, state=state))
                    self.disks[volume.name] = new
                yield Outcome(key=volume.name, changed=new != held)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    @property
    def hands_over(self) -> bool:
        """See :attr:`StorageDriver.hands_over`."""
        return True

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        return tuple(self.disks.values())

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`StorageDriver.unlabelled`."""
        return [name for name in names if name in self.foreign]

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        return Capacity(
            total=1024 * GIB,
            free=self.free,
            volumes_free=self.volumes_free,
            warnings=self.warnings,
        )

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`."""
        if request.origin is None:
            return count * (request.size or 0)
        return count * request.origin.allocated if request.mode is CloneMode.FULL else 0


class ReferenceSnapshots(DiskSnapshotInterface):
    """The snapshots of a reference pool, by key. ``fail`` maps a key to its next call's error."""

    lane = Lane(batch=4)

    def __init__(self, driver: ReferenceStorage) -> None:
        self._driver = driver
        self.kept: dict[str, tuple[DiskSnapshot, bytes]] = {}
        self.fail: dict[str, VmclonerError] = {}

    def create(self, requests: Sequence[SnapshotRequest]) -> Iterator[Outcome[DiskSnapshot]]:
        """See :meth:`DiskSnapshotInterface.create`."""
        for request in requests:
            try:
                with self._driver.lock:
                    outcome = self._create(request)
                yield outcome
            except VmclonerError as error:
                yield Outcome(key=request.key, error=error)

    def _create(self, request: SnapshotRequest) -> Outcome[DiskSnapshot]:
        key = request.key
        if key in self.fail:
            raise self.fail.pop(key)
        if key in self.kept:
            found = self.kept[key][0]
            if not found.labels.same(request.labels):
                raise Conflict(f"snapshot {key} is there")
            return Outcome(key=key, value=found, changed=False)
        disk = self._driver.disks.get(request.volume.name)
        if disk is None:
            raise NotFound(f"no volume {request.volume.name}")
        made = DiskSnapshot(
            labels=request.labels,
            pool=self._driver.name,
            path=Path("/reference") / key,
            size=disk.size,
        )
        self.kept[key] = made, self._driver.contents[disk.name]
        return Outcome(key=key, value=made)

    def revert(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[Volume]]:
        """See :meth:`DiskSnapshotInterface.revert`."""
        for snapshot in snapshots:
            try:
                with self._driver.lock:
                    outcome = self._revert(snapshot.labels)
                yield outcome
            except VmclonerError as error:
                yield Outcome(key=snapshot.labels.volume, error=error)

    def _revert(self, labels: SnapshotLabels) -> Outcome[Volume]:
        name = labels.volume
        if labels.key not in self.kept:
            raise NotFound(f"no snapshot {labels.key}")
        kept, content = self.kept[labels.key]
        held = self._driver.held(name, labels.labels)
        if held is not None and name in self._driver.busy:
            raise WrongState(f"volume {name} is in use")
        volume = Volume(
            name=name,
            pool=self._driver.name,
            labels=held.labels if held is not None else labels.labels,
            path=Path("/reference") / name,
            size=kept.size,
        )
        self._driver.disks[name], self._driver.contents[name] = volume, content
        return Outcome(key=name, value=volume)

    def delete(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[None]]:
        """See :meth:`DiskSnapshotInterface.delete`."""
        for snapshot in snapshots:
            found = self.kept.get(snapshot.key)
            if found and not found[0].labels.labels.same_clone(snapshot.labels.labels):
                error = Conflict(f"snapshot {snapshot.key} is another clone's")
                yield Outcome(key=snapshot.key, error=error)
                continue
            gone = self.kept.pop(snapshot.key, None)
            yield Outcome(key=snapshot.key, changed=gone is not None)

    def found(self) -> tuple[DiskSnapshot, ...]:
        """See :meth:`DiskSnapshotInterface.found`."""
        return tuple(snapshot for snapshot, _ in self.kept.values())

    def need(self, volumes: Sequence[Volume]) -> int:
        """See :meth:`DiskSnapshotInterface.need`."""
        return sum(volume.size for volume in volumes)


class ReferenceHypervisor(HypervisorDriver):
    """Keeps domains in a dictionary; a domain that is started prints its name on its console.

    It has consoles, memory, sizes, statistics, snapshots and warm forks. ``said`` maps a domain's
    name to its console's output, ``fail`` (operation, name) to the error of its next call,
    ``found`` a domain's name to its addresses while it runs, ``used`` to its statistics.
    """

    memory: ReferenceMemory
    kind = "reference"
    define_lane = Lane(batch=8, concurrency=2)
    start_lane = Lane(concurrency=4)
    stop_lane = Lane(batch=8)
    one_shot = True

    def __init__(self, context: DriverContext, _settings: NoSettings) -> None:
        super().__init__(context)
        self.lock = threading.Lock()
        self.machines: dict[str, Domain] = {}
        self.said: dict[str, bytes] = {}
        self.consoles = ReferenceConsoles(self)
        self.memory = ReferenceMemory(self)
        self.sizes = ReferenceSizes(self)
        self.statistics = ReferenceStatistics(self)
        self.used: dict[str, Statistics] = {}
        self.snapshots = ReferenceMachines(self)
        self.warm: ReferenceWarm | None = ReferenceWarm(self)
        self.boots: dict[str, BootConfig | None] = {}
        """What each domain booted at its last start, None for its definition."""
        self.found: dict[str, tuple[str, ...]] = {}
        self.foreign: set[str] = set()
        self.foreign_macs: set[str] = set()
        self.fail: dict[tuple[str, str], VmclonerError] = {}
        self.memory_free = 64 * GIB

    def probe(self) -> Iterator[Check]:
        """See :meth:`HypervisorDriver.probe`."""
        yield Check(backend=self.name, name="memory", status=Status.OK)

    def inspect(self) -> DomainInventory:
        """See :meth:`HypervisorDriver.inspect`."""
        return DomainInventory(
            domains=tuple(self.machines.values()),
            foreign_names=frozenset(self.foreign),
            foreign_macs=frozenset(self.foreign_macs),
        )

    def states(self) -> Mapping[str, State]:
        """See :meth:`HypervisorDriver.states`."""
        return {name: domain.state for name, domain in list(self.machines.items())}

    def resources(self) -> HostResources:
        """See :meth:`HypervisorDriver.resources`."""
        return HostResources(memory_total=64 * GIB, memory_free=self.memory_free, cpus=8)

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """See :meth:`HypervisorDriver.addresses`."""
        running = [name for name, d in self.machines.items() if d.state is State.RUNNING]
        return {name: self.found[name] for name in running if name in self.found}

    def render(self, spec: DomainSpec) -> str:
        """See :meth:`HypervisorDriver.render`."""
        return f"<domain><name>{spec.name}</name></domain>"

    def define(self, specs: Sequence[DomainSpec]) -> Iterator[Outcome[Domain]]:
        """See :meth:`HypervisorDriver.define`."""
        for spec in specs:
            with self.lock:  # not while the caller has the outcome: it may never ask for the next
                outcome = self._defined(spec)
            yield outcome

    def _defined(self, spec: DomainSpec) -> Outcome[Domain]:
        if error := self._error("define", spec.name):
            return Outcome(key=spec.name, error=error)
        held = self.machines.get(spec.name)
        if held is not None:
            if not held.labels.same_clone(spec.labels):
                return Outcome(key=spec.name, error=Conflict(f"{spec.name} is another clone"))
            return Outcome(key=spec.name, value=held, changed=False)
        domain = Domain(
            name=spec.name,
            uuid=spec.uuid,
            labels=spec.labels,
            state=State.STOPPED,
            memory=spec.memory,
            macs=tuple(nic.mac for nic in spec.nics),
            networks=spec.networks,
            disks=tuple(volume.path for volume in spec.volumes),
        )
        self.machines[spec.name] = domain
        return Outcome(key=spec.name, value=domain)

    def _error(self, operation: str, name: str) -> VmclonerError | None:
        if name in self.foreign:
            return Conflict(f"domain {name} isn't vmcloner's")
        return self.fail.pop((operation, name), None)

    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.start`."""
        for name in names:
            if name not in self.machines and name not in self.foreign:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))
                continue
            held = self.machines.get(name)
            outcome = self.set_state("start", name, State.RUNNING)
            booted = held is not None and held.state in (State.STOPPED, State.CRASHED)
            if outcome.ok and booted:
                self.said[name] = f"ready name={name} \n".encode()
                self.boots[name] = boots.get(name)
            yield outcome

    def set_state(self, operation: str, name: str, state: State) -> Outcome[None]:
        """Change a domain's state, unless the operation is to fail."""
        with self.lock:
            if error := self._error(operation, name):
                return Outcome(key=name, error=error)
            held = self.machines.get(name)
            if held is None or held.state is state:
                return Outcome(key=name, changed=False)
            self.machines[name] = attrs.evolve(held, state=state)
            return Outcome(key=name)

    def shutdown(
        self,
        names: Sequence[str],
        timeout: float,  # noqa: ARG002
    ) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.shutdown`; guests that obey need no ``timeout``."""
        for name in names:
            yield self.set_state("shutdown", name, State.STOPPED)

    def destroy(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.destroy`."""
        for name in names:
            yield self.set_state("destroy", name, State.STOPPED)

    def renew(self, disks: Mapping[str, Mapping[Path, Volume]]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.renew`; only saved memory is kept here."""
        for name in disks:
            held = self.machines.get(name)
            if held is not None and held.state in (State.RUNNING, State.PAUSED):
                yield Outcome(key=name, error=WrongState(f"{name} is {held.state.value}"))
            elif held is not None and held.state is State.SAVED:
                yield self.set_state("renew", name, State.STOPPED)
            else:
                yield Outcome(key=name, changed=False)

    def undefine(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.undefine`."""
        for name in names:
            with self.lock:
                outcome = self._undefined(name)
            yield outcome

    def _undefined(self, name: str) -> Outcome[None]:
        held = self.machines.get(name)
        if error := self._error("undefine", name):
            return Outcome(key=name, error=error)
        if held is not None and held.state in (State.RUNNING, State.PAUSED):
            return Outcome(key=name, error=WrongState(f"{name} is {held.state.value}"))
        self.said.pop(name, None)
        self.boots.pop(name, None)
        return Outcome(key=name, changed=self.machines.pop(name, None) is not None)


class ReferenceMemory(MemoryInterface):
    """The memory of a reference hypervisor's domains: only their states change."""

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver
        self.paused: set[str] = set()
        """The domains that were paused when they were saved."""

    def pause(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.pause`."""
        yield from self._each("pause", names, State.PAUSED, State.RUNNING)

    def save(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.save`."""
        yield from self._each("save", names, State.SAVED, State.RUNNING, State.PAUSED)

    def discard(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MemoryInterface.discard`."""
        for name in names:
            held = self._driver.machines.get(name)
            if held is not None and held.state is State.SAVED:
                yield self._driver.set_state("discard", name, State.STOPPED)
            else:
                yield Outcome(key=name, changed=False)

    def _each(
        self, operation: str, names: Sequence[str], state: State, *needed: State
    ) -> Iterator[Outcome[None]]:
        for name in names:
            held = self._driver.machines.get(name)
            if held is None:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))
            elif held.state not in (state, *needed):
                yield Outcome(key=name, error=WrongState(f"{name} is {held.state.value}"))
            else:
                if state is State.SAVED and held.state is not State.SAVED:
                    was_paused = held.state is State.PAUSED
                    self.paused = (self.paused - {name}) | ({name} if was_paused else set())
                yield self._driver.set_state(operation, name, state)


class ReferenceMachines(MachineInterface):
    """A reference hypervisor's domains in folders: states, sizes, and what consoles have said.

    Guests have agents that freeze their disks, except those named in ``mute``.
    """

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver
        self.mute: set[str] = set()
        self.frozen: set[str] = set()

    def quiesce(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.quiesce`."""
        for name in names:
            held = self._driver.machines.get(name)
            if held is None or held.state is not State.RUNNING or name in self.mute:
                yield Outcome(key=name, error=WrongState(f"{name} has no agent that answers"))
                continue
            outcome = self._driver.set_state("quiesce", name, State.PAUSED)
            self.frozen |= {name} if outcome.ok else set()
            yield outcome

    def release(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.release`."""
        for name in names:
            if name not in self.frozen:
                yield Outcome(key=name, changed=False)
                continue
            self.frozen.discard(name)
            yield self._driver.set_state("release", name, State.RUNNING)

    def keep(self, folders: Mapping[str, Path], *, memory: bool) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.keep`."""
        for name, folder in folders.items():
            held = self._driver.machines.get(name)
            if held is None:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))
            elif memory and held.state is not State.SAVED:
                yield Outcome(key=name, error=WrongState(f"{name} is {held.state.value}"))
            else:
                said = self._driver.said.get(name, b"").decode()
                was = State.PAUSED if name in self._driver.memory.paused else State.RUNNING
                kept = {"memory": held.memory, "said": said, "state": was.value if memory else ""}
                (folder / "machine").write_text(json.dumps(kept))
                yield Outcome(key=name)

    def resume(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.resume`."""
        for name in names:
            held = self._driver.machines.get(name)
            if held is None or held.state is not State.SAVED:
                yield Outcome(key=name, changed=False)
                continue
            paused = name in self._driver.memory.paused
            state = State.PAUSED if paused else State.RUNNING
            yield self._driver.set_state("resume", name, state)

    def check(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.check`."""
        for name, folder in folders.items():
            try:
                self._checked(name, folder)
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
            else:
                yield Outcome(key=name, changed=False)

    def _checked(self, name: str, folder: Path) -> dict[str, Any]:
        held = self._driver.machines.get(name)
        try:
            kept: dict[str, Any] = json.loads((folder / "machine").read_text())
        except (OSError, ValueError) as error:
            raise WrongState(f"{name}: its snapshot is damaged: {error}") from error
        if held is None:
            raise NotFound(f"no domain {name}")
        if kept["state"] and kept["memory"] != held.memory:
            raise WrongState(f"{name}: its devices have changed since: memory")
        return kept

    def put_back(self, folders: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """See :meth:`MachineInterface.put_back`."""
        for name, folder in folders.items():
            held = self._driver.machines.get(name)
            try:
                kept = self._checked(name, folder)
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
                continue
            if held is not None and held.state in (State.RUNNING, State.PAUSED):
                yield Outcome(key=name, error=WrongState(f"{name} is {held.state.value}"))
                continue
            state = State(kept["state"]) if kept["state"] else State.STOPPED
            outcome = self._driver.set_state("put_back", name, state)
            if outcome.ok and kept["state"]:
                self._driver.said[name] = kept["said"].encode()
            yield outcome


class ReferenceWarm(WarmInterface):
    """Forks of a reference hypervisor's domains: the memory is what a console has said.

    A parent says that it waits for a seed; a fork that gets one says that it has become somebody,
    except those named in ``deaf``.
    """

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver
        self.deaf: set[str] = set()
        self.booted: dict[str, Path] = {}
        self.loaded: set[str] = set()
        self.version = "1"

    def depends(self, spec: DomainSpec) -> Mapping[str, str]:
        """See :meth:`WarmInterface.depends`."""
        return {"version": self.version, "memory": str(spec.memory), "vcpus": str(spec.vcpus)}

    def boot(self, name: str, folder: Path) -> None:
        """See :meth:`WarmInterface.boot`."""
        self._known(name)
        self._driver.set_state("boot", name, State.RUNNING).unwrap()
        self._driver.said[name] = b"here is the parent\nvmcloner-waits-for-seed\n"
        self.booted[name] = folder

    def save(self, name: str, folder: Path) -> None:
        """See :meth:`WarmInterface.save`."""
        held = self._known(name)
        if held.state is not State.RUNNING or self.booted.pop(name, None) != folder:
            raise WrongState(f"{name} wasn't booted with its memory in {folder}")
        memory = self._driver.said[name].ljust(4096)
        (folder / "memory").write_bytes(memory)
        kept = {"memory": held.memory, "bytes": len(memory)}
        self._driver.set_state("save", name, State.STOPPED).unwrap()
        (folder / "warm.json").write_text(json.dumps(kept))

    def check(self, folder: Path) -> None:
        """See :meth:`WarmInterface.check`."""
        self._kept(folder)

    def _kept(self, folder: Path) -> int:
        try:
            kept = json.loads((folder / "warm.json").read_text())
            whole = (folder / "memory").stat().st_size == kept["bytes"]
        except (OSError, ValueError) as error:
            raise WrongState(f"{folder}: the memory there isn't whole") from error
        if not whole:
            raise WrongState(f"{folder}: the memory there isn't whole")
        return int(kept["memory"])

    def load(self, names: Sequence[str], folder: Path) -> Iterator[Outcome[None]]:
        """See :meth:`WarmInterface.load`."""
        for name in names:
            try:
                held = self._known(name)
                if held.state not in (State.STOPPED, State.SAVED) and name not in self.loaded:
                    raise WrongState(f"{name} is {held.state.value}")
                if self._kept(folder) != held.memory:
                    raise WrongState(f"{name} has other devices than the memory in {folder}")
            except VmclonerError as error:
                yield Outcome(key=name, error=error)
                continue
            self._driver.said.pop(name, None)
            self.loaded.add(name)
            yield self._driver.set_state("load", name, State.PAUSED)

    def go_on(self, seeds: Mapping[str, Path | None], serial: str) -> Iterator[Outcome[None]]:  # noqa: ARG002
        """See :meth:`WarmInterface.go_on`."""
        for name, seed in seeds.items():
            outcome = self._driver.set_state("go_on", name, State.RUNNING)
            if outcome.ok and seed is not None and name not in self.deaf:
                self._driver.said[name] = f"vmcloner-reseeded {name}\n".encode()
            self.loaded.discard(name)
            yield outcome

    def connect(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`WarmInterface.connect`."""
        yield from (Outcome(key=name, changed=False) for name in names)

    def _known(self, name: str) -> Domain:
        held = self._driver.machines.get(name)
        if held is None:
            raise NotFound(f"no domain {name}")
        return held


class ReferenceSizes(ResizeInterface):
    """The sizes of a reference hypervisor's domains: a running one gets memory at its next start.

    Processors aren't kept.
    """

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver

    def resize(
        self,
        names: Sequence[str],
        memory: int | None,
        vcpus: int | None,  # noqa: ARG002
    ) -> Iterator[Outcome[bool]]:
        """See :meth:`ResizeInterface.resize`."""
        for name in names:
            held = self._driver.machines.get(name)
            if held is None:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))
                continue
            off = held.state in (State.STOPPED, State.CRASHED)
            new = attrs.evolve(held, memory=memory or held.memory)
            self._driver.machines[name] = new
            yield Outcome(key=name, value=off or new == held, changed=new != held)

    def grow_disk(self, name: str, volume: Volume, size: int) -> None:  # noqa: ARG002
        """See :meth:`ResizeInterface.grow_disk`."""
        held = self._driver.machines.get(name)
        if held is None or volume.path not in held.disks:
            raise NotFound(f"{name}: {volume.path} isn't one of its disks")


class ReferenceStatistics(StatisticsInterface):
    """The statistics of a reference hypervisor's domains: what a test put there, else the memory.

    Processor time is one second since the last reading.
    """

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver
        self._reads = 0

    def read(self, names: Collection[str]) -> Mapping[str, Statistics]:
        """See :meth:`StatisticsInterface.read`."""
        self._reads += 1
        return {
            name: self._driver.used.get(name)
            or Statistics(at=float(self._reads), cpu=float(self._reads), memory=domain.memory)
            for name, domain in self._driver.machines.items()
            if name in names and domain.state in (State.RUNNING, State.PAUSED)
        }

    def shares(self, names: Collection[str]) -> Mapping[str, int]:
        """See :meth:`StatisticsInterface.shares`: half of the memory."""
        found = self.read(names)
        return {name: each.memory // 2 for name, each in found.items() if each.memory is not None}


class ReferenceConsoles(ConsoleInterface):
    """The console output of a reference hypervisor's domains; they take no input."""

    def __init__(self, driver: ReferenceHypervisor) -> None:
        self._driver = driver

    def log(self, name: str) -> Path:
        """See :meth:`ConsoleInterface.log`; nothing is written there."""
        return self._driver.context.host.consoles / f"{name}.log"

    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """See :meth:`ConsoleInterface.read`."""
        said = self._driver.said.get(name, b"")
        if offset > len(said):
            offset = 0
        data = said[offset : offset + limit]
        return data, offset + len(data)

    def attach(self, name: str, stdin: int, stdout: int) -> None:  # noqa: ARG002
        """See :meth:`ConsoleInterface.attach`."""
        if name not in self._driver.machines:
            raise NotFound(f"no domain {name}")
        raise WrongState(f"{name} has a console that can only be read")


class StoragePlugin:
    """Registers the storage ``reference``; ``driver`` is its only instance, for tests."""

    def __init__(self) -> None:
        self.made: list[ReferenceStorage] = []

    @property
    def driver(self) -> ReferenceStorage:
        """The driver that the engine uses."""
        return self.made[0]

    def _make(self, context: DriverContext, settings: NoSettings) -> ReferenceStorage:
        if not self.made:
            self.made.append(ReferenceStorage(context, settings))
        return self.made[0]

    @hookimpl
    def vmcloner_storage_backend(self) -> StorageBackend:
        """Register the backend."""
        return StorageBackend(api=1, name="reference", description="in memory", factory=self._make)


class HypervisorPlugin:
    """Registers the hypervisor ``reference``; ``driver`` as in :class:`StoragePlugin`."""

    def __init__(self) -> None:
        self.made: list[ReferenceHypervisor] = []

    @property
    def driver(self) -> ReferenceHypervisor:
        """The driver that the engine uses."""
        return self.made[0]

    def _make(self, context: DriverContext, settings: NoSettings) -> ReferenceHypervisor:
        if not self.made:
            self.made.append(ReferenceHypervisor(context, settings))
        return self.made[0]

    @hookimpl
    def vmcloner_hypervisor_backend(self) -> HypervisorBackend:
        """Register the backend."""
        return HypervisorBackend(
            api=1, name="reference", description="in memory", factory=self._make
        )


class BootPlugin:
    """Registers the boot provider ``reference``, which boots every clone from its disk.

    With ``at_start`` it is asked at each start, and gives a kernel. ``driver`` is its only
    instance, for tests.
    """

    def __init__(self, name: str = "reference", *, at_start: bool = False) -> None:
        self.driver = ReferenceBoot()
        self._name = name
        self._at_start = at_start

    @hookimpl
    def vmcloner_boot_provider(self) -> BootBackend:
        """Register the provider."""
        kinds = frozenset({"reference"})
        return BootBackend(
            api=1,
            name=self._name,
            description="from the disk",
            factory=lambda _context: self.driver,
            hypervisors=kinds,
            at_start=kinds if self._at_start else frozenset(),
        )


class ReferenceBoot(BootProvider):
    """Boots from the disk; at a start, from a kernel whose content is the number of the start.

    ``fail`` maps a clone's name to the error of its next start; ``on_reboot`` and ``handover`` are
    part of its answers at a start.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[BootRequest] = []
        self.on_reboot: Literal["restart", "destroy"] = "restart"
        self.handover: str | None = None
        self.fail: dict[str, VmclonerError] = {}

    def check(self, template: Template) -> None:
        """Accept every template."""

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Return ``hd`` for every clone."""
        for request in requests:
            yield Outcome(key=request.labels.clone, value=BootConfig())

    def resolve_start(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """Give each clone its own kernel."""
        for request in requests:
            name = request.labels.clone
            with self.lock:
                error = self.fail.pop(name, None)
                self.asked.append(request)
                times = sum(asked.labels.clone == name for asked in self.asked)
            if error is None and request.dry_run:
                value = BootConfig(devices=(), origins=(f"a kernel of {name}",), source="memory")
                yield Outcome(key=name, value=value)
                continue
            if error is not None or request.folder is None:
                yield Outcome(key=name, error=error or InvalidRequest(f"{name}: no folder"))
                continue
            kernel = request.folder / "kernel"
            kernel.write_text(f"start {times}")
            config = BootConfig(
                kernel=kernel, devices=(), on_reboot=self.on_reboot, handover=self.handover
            )
            yield Outcome(key=name, value=config)
