"""Make a template of a clone: its first disk becomes an image, sealed, with a TOML file.

Everything is checked first. The TOML file comes last: until it is there, the image is one that no
template names, which the same command replaces and ``template prune`` removes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core import catalog, images, sealing
from vmcloner_core.deadlines import answers
from vmcloner_core.disk_users import DiskUsers, check_back
from vmcloner_core.drivers import CaptureInterface, CaptureRequest
from vmcloner_core.errors import BackendError, Conflict, NotFound, VmclonerError, WrongState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    AS_IT_COMES,
    CapturedImage,
    Clone,
    Copying,
    DomainUse,
    KernelSpec,
    Origin,
    Outcome,
    Progress,
    State,
    Template,
    Volume,
)
from vmcloner_core.names import check_template
from vmcloner_core.os_errors import translated
from vmcloner_core.outcomes import single
from vmcloner_core.process import LocalRunner
from vmcloner_core.trusted_files import make_folder

log = logging.getLogger(__name__)
STEP = "capture"
"""The name of the step in events."""
SEALER = "sealer"
"""The image builder that makes the guest that seals disks."""
_DIGEST = "captured:"


@attrs.frozen(kw_only=True)
class CaptureOptions:
    """How a clone is captured.

    :param description: of the template; empty for its parent's.
    :param live: take the disk of a running clone, while its guest agent has frozen it.
    :param compact: give back the space of what the disk's file systems don't use.
    :param seal: remove what makes the clone the machine that it is.
    """

    description: str = ""
    live: bool = False
    compact: bool = False
    seal: bool = True
    copying: Copying = AS_IT_COMES


@attrs.frozen(kw_only=True)
class Capture:
    """A clone that is captured, or would be.

    :param parent: the template that the new one extends. :param size: bytes of the disk.
    :param need: bytes that its image takes at most. :param left_out: what isn't captured, in words.
    :param file: the template's file. :param done: it had been captured before.
    """

    clone: str
    template: str
    parent: str
    pool: str
    size: int
    need: int
    sealed: bool
    left_out: tuple[str, ...]
    file: Path
    done: bool = False


@attrs.frozen
class Capturer:
    """Captures one clone; the locks of its fleet and of the template are held."""

    host: LocalHost
    clone: Clone
    name: str
    options: CaptureOptions

    def plan(self) -> Capture:
        """Return what will be done, checked against the host. Changes nothing.

        :raises Conflict: the name is taken. :raises WrongState: the clone's disk can't be captured
            now. :raises NotFound: its template is gone. :raises BackendError: its pool can't.
        """
        check_template(self.name)
        first, others = self._volumes()
        parent = self.host.catalog.template(self.clone.template)
        capture = Capture(
            clone=self.clone.name,
            template=self.name,
            parent=parent.name,
            pool=first.pool,
            size=first.size,
            need=0,
            sealed=self.options.seal,
            left_out=tuple(_described(volume, parent) for volume in others),
            file=catalog.own_file(self.name),
        )
        if self._is_done(first):
            return attrs.evolve(capture, done=True)
        self._check_state()
        self._check_users()
        self._interface(first)
        self._kernels()
        return attrs.evolve(capture, need=self._interface(first).need(first))

    def __call__(self, plan: Capture) -> bool:
        """Carry a plan out; tell whether there was anything to do."""
        if plan.done:
            return False
        self._remove_unnamed()
        begun = time.monotonic()
        outcome = self.host.images.told(STEP, self.name, "", begun, self._capture)
        self._copy_kernels()
        catalog.write(*self._text(plan, outcome.unwrap()))
        return True

    # --- checks ---------------------------------------------------------------------------------

    def _volumes(self) -> tuple[Volume, Sequence[Volume]]:
        """Return the clone's first disk, and the others."""
        volumes = sorted(self.clone.volumes, key=lambda volume: volume.disk)
        if not volumes or volumes[0].disk != 0 or not volumes[0].complete:
            raise WrongState(
                f"{self.clone.name}: its first disk is missing or incomplete",
                hint="run its create again",
            )
        return volumes[0], volumes[1:]

    def _is_done(self, first: Volume) -> bool:
        """Tell whether the template is there, captured from this clone.

        :raises Conflict: there is another one of that name.
        """
        file = self.host.catalog.files().get(self.name)
        if file is None:
            return False
        try:
            captured = self.host.catalog.template(self.name).image.captured
        except VmclonerError:
            captured = None
        if captured is None or _origin_of(captured) != (self.name, *self._key):
            raise Conflict(f"template {self.name} exists: {file}", hint="choose another name")
        if captured.sealed is not self.options.seal:
            raise Conflict(
                f"template {self.name} was captured {'sealed' if captured.sealed else 'unsealed'}",
                hint=f"vmcloner template delete {self.name}, or choose another name",
            )
        driver = self.host.drivers.storage(first.pool)
        return self.host.images.origin(driver, self.name) is not None

    @property
    def _key(self) -> tuple[str, str, str]:
        """What tells this clone from one of the same name that was created later."""
        labels = self.clone.labels
        return labels.clone, labels.run, labels.created

    def _check_state(self) -> None:
        name, state = self.clone.name, self.clone.state
        if not self.clone.ours:
            raise WrongState(f"{name} is another state folder's")
        if state is State.PAUSED or (state is State.RUNNING and not self.options.live):
            raise WrongState(
                f"{name} is {state.value}: its disk is in use",
                hint=f"vmcloner stop {name}"
                + ("; or --live" if state is State.RUNNING else f", or vmcloner resume {name}"),
            )
        if state is State.SAVED:
            raise WrongState(
                f"{name} is saved: its memory has what its disk lacks",
                hint=f"vmcloner start {name}, then vmcloner stop {name}",
            )
        if state is State.UNKNOWN:
            raise WrongState(f"{name}: whether it is running is unknown", hint="vmcloner list")

    def _check_users(self) -> None:
        """Check that nothing uses the clone's disks, and that they are the ones it has.

        :raises WrongState: something does.
        """
        drivers, own = self.host.drivers, self.clone.labels.hypervisor

        def ask(name: str) -> tuple[DomainUse, ...]:
            return drivers.hypervisor(name).uses([self.clone.name] if name == own else [])

        found = answers(
            {name: functools.partial(ask, name) for name in {*drivers.names("hypervisor"), own}}
        )
        uses: list[DomainUse] = []
        for name, said in found.items():
            if not isinstance(said, VmclonerError):
                uses.extend(said)
            elif name == own:
                raise said
        users = DiskUsers(uses, self.clone.volumes)
        users.check(self.clone.name, self.clone.volumes, drivers.hypervisor(own).is_own_process)
        moved = users.moved(self.clone.name, self.clone.volumes)
        check_back(self.clone.name, moved)
        if moved:
            raise WrongState(
                f"{self.clone.name}: its disk is on the overlay {moved[0].now} of a snapshot",
                hint="virsh blockcommit, or remove the snapshot, first",
            )

    def _interface(self, volume: Volume) -> CaptureInterface:
        capturing = self.host.drivers.storage(volume.pool).capturing
        if capturing is None:
            raise BackendError(
                f"{self.clone.name}: pool {volume.pool!r} captures no disks",
                hint="create the clone in another pool: --storage",
            )
        return capturing

    # --- the image ------------------------------------------------------------------------------

    def _remove_unnamed(self) -> None:
        """Remove the image that an interrupted capture of this clone left.

        :raises Conflict: a pool has another image of that name.
        """
        for origin in self.host.images.origins(self.name):
            if not origin.digest.startswith(self._digest_start):
                raise Conflict(
                    f"pool {origin.pool} has an image of {self.name}, which no template names",
                    hint="vmcloner template prune, or choose another name",
                )
            self.host.images.delete_origin(origin.pool, self.name)

    @property
    def _digest_start(self) -> str:
        text = "\n".join(self._key)
        return f"{_DIGEST}{hashlib.sha256(text.encode()).hexdigest()[:16]}-"

    def _capture(self, progress: Progress) -> Outcome[Origin]:
        volume = self._volumes()[0]
        request = CaptureRequest(
            template=self.name,
            volume=volume,
            digest=self._digest_start + secrets.token_hex(16),
            live=self.clone.state is State.RUNNING,
            copying=self.options.copying,
        )
        change = self._sealing(progress)
        with self.host.active([volume]), self._frozen() as thaw:
            return single(
                lambda: self._interface(volume).capture(request, change, thaw, progress),
                self.name,
                self.host.drivers.backend("storage", volume.pool, "capture"),
                Origin,
            )

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[Callable[[], None]]:
        """Freeze the clone's file systems if it runs; yields what thaws them, as the end does.

        :raises WrongState: no agent in the guest does it.
        """
        if self.clone.state is not State.RUNNING:
            yield lambda: None
            return
        agents = self.host.drivers.hypervisor(self.clone.labels.hypervisor).agents
        if agents is None:
            raise WrongState(f"{self.clone.name}: its hypervisor has no guest agents")
        with contextlib.ExitStack() as stack:
            agents.freeze(self.clone.name)
            stack.callback(agents.thaw, self.clone.name)
            yield stack.close

    def _sealing(self, progress: Progress) -> Callable[[Path], None]:
        """Return what seals the copy of the disk. The guest is built first: that may fail."""
        if not self.options.seal:
            return lambda _path: None
        guest = self.host.host.state / "guests" / SEALER
        builder = self.host.drivers.builder(SEALER, {}, "sealing")
        with self.host.hold([f"guest/{SEALER}"], lambda: False), translated(guest):
            make_folder(self.host.host.templates)
            for left in guest.parent.glob(f".{SEALER}-*"):  # of a build that was killed
                shutil.rmtree(left)
            images.fill(builder, builder.fingerprint(), guest, progress)
        return functools.partial(self._seal, guest)

    def _seal(self, guest: Path, disk: Path) -> None:
        spec = self.host.made_of(self.clone.labels).seal
        name, compact = self.clone.name, self.options.compact
        emulated = self.host.emulates(self.clone.labels.hypervisor)
        # In a place that is swept if this is killed.
        with (
            translated(guest),
            tempfile.TemporaryDirectory(
                prefix=images.DRAFT_PREFIX.format(self.name), dir=self.host.host.templates
            ) as work,
        ):
            sealing.seal(
                LocalRunner(), guest, disk, Path(work), name, spec,
                compact=compact, emulated=emulated,
            )  # fmt: skip

    # --- the template ---------------------------------------------------------------------------

    def _kernels(self) -> Sequence[tuple[str, Path]]:
        """Return the files beside the template that its clones boot, by what they are called.

        :raises NotFound: one is missing.
        """
        template = self.host.made_of(self.clone.labels)
        kernel = template.kernel or KernelSpec()
        given = [("vmlinuz", kernel.path), ("initrd.img", kernel.initrd)]
        found = [(name, template.folder / path) for name, path in given if path is not None]
        for _name, path in found:
            if not path.is_file():
                raise NotFound(f"{self.clone.name}: {path}, which it boots, is missing")
        return found

    def _copy_kernels(self) -> None:
        """Put the files that clones boot into a folder of the template's own."""
        kernels = self._kernels()
        folder = self.host.host.templates / self.name
        with translated(folder):
            make_folder(folder.parent)
            draft = images.DRAFT_PREFIX.format(self.name)
            made = Path(tempfile.mkdtemp(prefix=draft, dir=folder.parent))
            try:
                for name, path in kernels:
                    shutil.copyfile(path, made / name)
                    (made / name).chmod(0o644)  # QEMU's user reads it, whatever the umask
                made.chmod(0o755)
                shutil.rmtree(folder, ignore_errors=True)
                if kernels:
                    made.rename(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)

    def _text(self, plan: Capture, origin: Origin) -> tuple[Path, str]:
        clone, run, created = self._key
        captured = CapturedImage(
            template=self.name,
            pool=origin.pool,
            clone=clone,
            run=run,
            created=created,
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            sealed=self.options.seal,
        )
        kernel = {("path" if n == "vmlinuz" else "initrd"): n for n, _ in self._kernels()}
        top: dict[str, object] = {}
        if self.options.description:
            top["description"] = self.options.description
        top["disk_size"] = origin.size
        return plan.file, catalog.captured(plan.parent, top, kernel, captured)


def _origin_of(captured: CapturedImage) -> tuple[str, str, str, str]:
    return captured.template, captured.clone, captured.run, captured.created


def _described(volume: Volume, template: Template) -> str:
    """Return a disk that isn't captured, and what new clones have instead."""
    blanks = template.blanks
    what = "no such disk"
    if 0 < volume.disk <= len(blanks):
        swap = blanks[volume.disk - 1].content == "swap"
        what = "a new swap area" if swap else "an empty disk"
    return f"{volume.name} is left out: new clones have {what}"
