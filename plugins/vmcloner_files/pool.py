"""The folder of a pool: its files, their records, and its lock.

``templates/NAME.raw`` are the templates' images, ``volumes/CLONE-diskN`` the clones' disks,
``snapshots/CLONE-diskN.NAME`` their snapshots, and ``.labels`` has the labels of all. These say
whether a disk is raw or qcow2: its content is under the guest's control. So nothing in a pool is
believed that another user could have written. The lock ``.lock`` is shared by processes that add
files; one that removes or replaces files holds it alone. ``.tmp`` is for file systems without
O_TMPFILE. ``.id`` says which pool this is: an empty mount point is not the pool that was there.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import pwd
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import BackendError, Conflict, DeadlineExceeded, WrongState
from vmcloner_core.model import Labels, Leftover, SnapshotLabels
from vmcloner_core.names import check_template, fold, volume_name
from vmcloner_core.os_errors import allocated, translated
from vmcloner_core.stored_ids import KnownPool, new_id, read_id
from vmcloner_core.trusted_files import check_folder, check_owner
from vmcloner_files import drafts
from vmcloner_files.features import Features, examine, existing, has_attributes
from vmcloner_files.labelling import FileLabels
from vmcloner_files.records import DiskRecord, ImageRecord, SnapshotRecord
from vmcloner_files.sharing import Mount, check_locks, is_shared, mount_of

FOLDER_MODE = 0o711
"""QEMU runs as another user: it must enter the folder, and need not list it."""
LOCK_TIMEOUT = 120.0
_LOCK_POLL = 0.002

T = TypeVar("T")
log = logging.getLogger(__name__)


class Pool:
    """A pool's folder, made when it is first needed. Thread-safe.

    :param known: remembers which pool it is. :param qemu_user: who runs guests, beside system
        accounts. :param shared: whether several hosts use it; None: those on NFS.
    """

    def __init__(
        self,
        folder: Path,
        known: KnownPool,
        qemu_user: str | None = None,
        shared: bool | None = None,
    ) -> None:
        self.folder = folder
        self._known = known
        self._qemu_uid = pwd.getpwnam(qemu_user).pw_uid if qemu_user else None
        self.templates = folder / "templates"
        self.volumes = folder / "volumes"
        self.snapshots = folder / "snapshots"
        self._temporary = folder / ".tmp"
        self._labels_file = folder / ".labels"
        self._id_file = folder / ".id"
        self._lock_file = folder / ".lock"
        self._mutex = threading.Lock()
        self._features: Features | None = None
        self._labels: FileLabels | None = None
        self._wants_shared = shared
        self._owner: str | None = None
        self._trusted = False
        self._copies: set[str] = set()

    def __str__(self) -> str:
        return f"pool {self.folder}"

    # --- the folder -----------------------------------------------------------------------------

    @functools.cached_property
    def _mount(self) -> Mount | None:
        return mount_of(next(existing(self.folder)))

    @property
    def shared(self) -> bool:
        """Whether several hosts use it.

        Then it is locked alone by whoever writes, each host sees its own clones only, and labels
        are in one place.
        """
        return is_shared(self._mount, self._wants_shared)

    def check_sharing(self) -> None:
        """Check that its locks hold between all hosts that use it.

        :raises BackendError: they don't.
        """
        if self.shared:
            check_locks(self, self._mount)

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (*self._labelled_folders, self._temporary)

    @property
    def _labelled_folders(self) -> tuple[Path, ...]:
        return (self.templates, self.volumes, self.snapshots)

    def prepare(self) -> Features:
        """Make missing folders and remove what dead processes left; once per pool.

        :returns: what its file system supports.
        :raises BackendError: it is not the pool that was used before.
        """
        with self._mutex:
            if self._features is None:
                self.check_sharing()
                self.check_folders()
                self.check_identity()
                with translated(self):
                    _make(self.folder)
                    for folder in self._folders:
                        _make(folder, owner=self.folder)
                    self.check_folders()
                    self._labels = None  # may have been found on a parent folder
                    features = examine(self._temporary)
                    self.sweep()
                self._features = features
            return self._features

    def check_identity(self) -> None:
        """Check that this is the pool that was used before, if one was.

        :raises BackendError: it is another one, or is not mounted.
        """
        with translated(self._id_file):
            found = read_id(self._id_file)
        self._known.check(self, found)

    def _adopt(self) -> None:
        """Give the pool an id, unless it has one, and remember it."""
        if read_id(self._id_file) is None:
            taken = contextlib.suppress(FileExistsError)  # another process was faster
            with self._small_file(new_id().encode()) as draft, taken:
                draft.publish(self._id_file)
        self._known.remember(read_id(self._id_file))

    @contextlib.contextmanager
    def _small_file(self, content: bytes) -> Iterator[drafts.Draft]:
        """Yield a draft of a file that all may read; it belongs to the pool's owner."""
        features = self._features or examine(self._temporary)
        open_draft = drafts.unnamed if features.unnamed else drafts.named
        with open_draft(self._temporary) as draft:
            os.fchmod(draft.fd, 0o644)
            _give(draft.fd, self.folder)
            while content:
                content = content[os.write(draft.fd, content) :]
            os.fsync(draft.fd)
            yield draft

    def features(self) -> Features:
        """Return what its file system supports, without making the folder.

        :raises VmclonerError: it is not writable.
        """
        if self._features is not None:
            return self._features
        with translated(self):
            return examine(next(existing(self.folder)))

    def check_folders(self) -> None:
        """Check that no other user could have put anything into those folders that exist; once.

        :raises InvalidRequest: one could; names the folder, the reason and the way out.
        """
        if self._trusted or not os.path.lexists(self.folder):
            return
        for folder in (self.folder, *self._folders):
            if folder == self.folder or os.path.lexists(folder):
                check_folder(folder)
        self._trusted = True

    def check_file(self, path: str | Path, status: os.stat_result) -> None:
        """Check that no other user could have written a file of the pool.

        QEMU's user may own it: libvirt gives a guest's disks and their backing files to that user.

        :raises InvalidRequest: one could; names the file, the reason and the way out.
        """
        owner = status.st_uid
        runs_guests = owner == self._qemu_uid or _is_system_account(owner)
        check_owner(path, status, also=owner if runs_guests else None)

    def check_all(self) -> None:
        """Check all folders, the lock, and all of our files.

        :raises InvalidRequest: another user could have written one.
        """
        self.check_folders()
        with translated(self), contextlib.suppress(FileNotFoundError):
            self.check_file(self._lock_file, self._lock_file.lstat())
        for folder in self._labelled_folders:
            for _ in self._labelled(folder):
                pass

    def sweep(self) -> None:
        """Remove drafts and labels of processes that died; complete what an older version made."""
        with translated(self):
            if not self._temporary.exists():
                return
            self.check_folders()
            self.check_identity()
            self._adopt()
            self.sweep_drafts()
            folders = [folder for folder in self._labelled_folders if folder.exists()]
            if self.labels.compacted(folders) is not None:
                with self.lock(alone=True):
                    self._compact(folders)

    def _compact(self, folders: Sequence[Path]) -> None:
        content = self.labels.compacted(folders)
        if content is None:
            return
        with self._small_file(content) as draft:
            draft.replace(self._labels_file, self._temporary)
        for folder in folders:
            for left in folder.glob(".*.labels"):  # an earlier version's; their lines are made
                left.unlink()

    def sweep_drafts(self) -> None:
        """Remove drafts of processes that died."""
        with contextlib.suppress(FileNotFoundError):
            drafts.sweep(self._temporary)

    def leftovers(self) -> tuple[Leftover, ...]:
        """Return the drafts that :meth:`sweep` would remove."""
        with translated(self):
            if not self._temporary.exists():
                return ()
            left = list(drafts.left(self._temporary))
            why = "the process that made it was killed"
            return tuple(
                Leftover(kind="draft", name=str(path), size=allocated(path), why=why)
                for path in left
            )

    @property
    def labels(self) -> FileLabels:
        """The labels of its files."""
        if self._labels is None:
            # Not all hosts that share a pool may see attributes: labels are in one place then.
            attributes = not self.shared and has_attributes(next(existing(self.volumes)))
            self._labels = FileLabels(self._labels_file, attributes=attributes, shared=self.shared)
        return self._labels

    @contextlib.contextmanager
    def lock(self, *, alone: bool = False) -> Iterator[None]:
        """Hold the pool's lock: shared with others that add files, or alone.

        Hosts that share a pool always hold it alone: appends of several are not atomic on NFS.

        :raises DeadlineExceeded: another process held it until the deadline.
        """
        how = fcntl.LOCK_EX if alone or self.shared else fcntl.LOCK_SH
        deadline = time.monotonic() + LOCK_TIMEOUT
        self.check_sharing()
        self.check_folders()
        self.check_identity()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with translated(self._lock_file):
            fd = os.open(self._lock_file, flags, 0o600)
        try:
            with translated(self._lock_file):
                self.check_file(self._lock_file, os.fstat(fd))
            while True:
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DeadlineExceeded(
                            f"{self} is locked by another process",
                            hint=f"find that process: fuser {self._lock_file}",
                        ) from None
                    pause(_LOCK_POLL)
                except OSError as error:
                    raise BackendError(
                        f"{self}: can't lock {self._lock_file}: {error.strerror}",
                        hint="put the pool on a file system that supports locks",
                    ) from error
            if self.shared:
                self._see()
            yield
        finally:
            os.close(fd)

    def _see(self) -> None:
        """See what other hosts did before this one got the lock.

        NFS asks the server for a folder's state when the folder is opened; until then it may
        answer from what it has seen before.
        """
        for folder in self._folders:
            with translated(folder), contextlib.suppress(FileNotFoundError):
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def draft(self, folder: Path, *, named: bool = False) -> AbstractContextManager[drafts.Draft]:
        """Yield a file that can get a name in one of the pool's folders.

        :param named: it has a temporary one, by which contained programs can open it.
        """
        unnamed = self.prepare().unnamed and not named
        return drafts.unnamed(folder) if unnamed else drafts.named(self._temporary)

    def replace(self, draft: drafts.Draft, path: Path) -> None:
        """Replace a file by a labelled draft; the caller holds the lock alone."""
        old = path.lstat().st_ino
        draft.replace(path, self._temporary)
        self.labels.forget(path, old)

    # --- its files ------------------------------------------------------------------------------

    def image_path(self, template: str) -> Path:
        """Return the path of a template's image."""
        return self.templates / f"{check_template(template)}.raw"

    def disk_path(self, labels: Labels, disk: int) -> Path:
        """Return the path of a clone's disk of that number."""
        return self.volumes / volume_name(labels.clone, disk)

    def image(self, template: str) -> ImageRecord | None:
        """Return the record of a template's image, None if there is no image.

        :raises Conflict: its name is taken by a file without our labels.
        """
        path = self.image_path(template)
        return self._read(path, lambda values: _image_named(values, path.name))

    def disk(self, labels: Labels, disk: int) -> DiskRecord | None:
        """Return the record of a clone's disk of that number, None if there is no such disk.

        :raises Conflict: the file of that name has no labels of ours, or is another clone's disk,
            or of another host that shares the pool.
        """
        path = self.disk_path(labels, disk)
        record = self.record(path)
        if record is not None and self.shared and _of_others(record.labels, labels.state):
            raise Conflict(
                f"volume {path} belongs to another host that shares the pool "
                f"(state folder {record.labels.state})",
                hint="choose another name, or delete that clone there",
            )
        if record is not None and not record.labels.same_clone(labels):
            raise Conflict(
                f"volume {path} belongs to clone {record.labels.clone} of template "
                f"{record.labels.template}, not {labels.template}",
                hint="delete that clone first, or choose another name",
            )
        return record

    def record(self, path: Path) -> DiskRecord | None:
        """Return the record of the disk at ``path``, None if there is no file.

        :raises Conflict: the file has no labels of ours.
        """
        return self._read(path, lambda values: _disk_named(values, path.name))

    def snapshot(self, labels: SnapshotLabels) -> SnapshotRecord | None:
        """Return the record of a snapshot, None if there is no such file.

        :raises Conflict: the file of that name has no labels of ours, or is another clone's.
        """
        path = self.snapshots / labels.key
        record = self._read(path, lambda values: _snapshot_named(values, path.name))
        if record is not None and not record.labels.labels.same_clone(labels.labels):
            raise Conflict(
                f"snapshot {path} is one of {record.labels.labels.clone}, of another template",
                hint="delete it first, or choose another name",
            )
        if record is not None and not self.is_own(record.labels.labels):
            raise Conflict(
                f"snapshot {path} belongs to another host that shares the pool",
                hint="delete it there, or choose another name",
            )
        return record

    def all_snapshots(self) -> dict[Path, SnapshotRecord]:
        """Return the snapshots of clones' disks."""
        found = {}
        for path, values in self._labelled(self.snapshots):
            if record := _snapshot_named(values, os.path.basename(path)):  # noqa: PTH119
                found[Path(path)] = record
        return found

    def is_own(self, labels: Labels) -> bool:
        """Tell whether a clone is of this host: all are, unless hosts share the pool."""
        if not self.shared:
            return True
        if self._owner is None:
            self._owner = self._known.owner()
        return not _of_others(labels, self._owner)

    def is_foreign(self, volume: str) -> bool:
        """Tell whether something has a volume's name, without the labels of that volume's clone.

        In a shared pool, that of another host's clone is foreign too.
        """
        try:
            record = self.record(self.volumes / volume)
        except Conflict:
            return True
        return record is not None and not self.is_own(record.labels)

    def _read(self, path: Path, parse: Callable[[dict[str, str]], T | None]) -> T | None:
        self.check_folders()
        with translated(path):
            try:
                status = path.lstat()
                values = self.labels.read(path, status)
            except FileNotFoundError:
                return None
        record = parse(values) if values is not None else None
        if record is None:
            raise Conflict(
                f"{path} exists and is not vmcloner's",
                hint="it is not touched: move it away, or choose another name",
            )
        self.check_file(path, status)
        return record

    def images(self) -> dict[Path, ImageRecord]:
        """Return the templates' images."""
        found = {}
        for path, values in self._labelled(self.templates):
            if record := _image_named(values, os.path.basename(path)):  # noqa: PTH119
                found[Path(path)] = record
        return found

    def disks(self) -> dict[Path, DiskRecord]:
        """Return the clones' disks; name copies of them, once."""
        found = {}
        for path, values in self._labelled(self.volumes):
            name = os.path.basename(path)  # noqa: PTH119
            record = _disk_named(values, name)
            if record is not None:
                found[Path(path)] = record
            elif path not in self._copies and (copied := DiskRecord.from_mapping(values)):
                self._copies.add(path)
                log.warning(
                    "%s has the labels of a disk of %s: it is left", path, copied.labels.clone
                )
        return found

    def check_unlinked(self, template: str) -> None:
        """Check that no clone's disk reads from a template's image.

        :raises WrongState: some do; names them.
        """
        disks = [*self.disks().values(), *(each.disk for each in self.all_snapshots().values())]
        linked = {
            disk.labels.clone
            for disk in disks
            if disk.format == "qcow2" and disk.labels.image == template
        }
        if linked:
            named = fold(sorted(linked))
            few = named if len(named) <= 200 else f"{named[:199]}…"
            raise WrongState(
                f"template {template}: clones are linked to its image: {few}",
                hint="delete them first",
            )

    def remove(self, path: Path) -> None:
        """Remove a file and its labels; the caller holds the lock alone."""
        inode = path.lstat().st_ino
        path.unlink()
        self.labels.forget(path, inode)

    def _labelled(self, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield (path, labels) of a folder's labelled files; nothing if there is no folder.

        :raises InvalidRequest: another user could have written one.
        """
        self.check_folders()
        self.check_identity()
        with translated(folder):
            try:
                names = os.listdir(folder)  # noqa: PTH208 - strings, not ten thousand Paths
            except FileNotFoundError:
                return
            paths = (f"{folder}/{name}" for name in names if name[0] != ".")
            for path, status, values in self.labels.read_all(paths):
                self.check_file(path, status)
                yield path, values


def _make(folder: Path, owner: Path | None = None) -> None:
    """Make a folder and its parents.

    :param owner: a folder that has the owner that the new one gets.
    """
    if not folder.is_dir():
        _make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(FOLDER_MODE)  # regardless of the umask
            if owner is not None:
                _give(folder, owner)


def _give(new: int | Path, folder: Path) -> None:
    """Give what root has made in a user's pool to that user."""
    if os.geteuid() == 0:
        status = folder.stat()
        os.chown(new, status.st_uid, status.st_gid)


def _of_others(labels: Labels, state: str | None) -> bool:
    """Tell whether labels name another state folder; those of earlier versions name none."""
    return labels.state is not None and labels.state != state


def _is_system_account(uid: int) -> bool:
    """Tell whether a user id is one for daemons: up to 999 (login.defs(5)), or Debian's own."""
    return 0 < uid < 1000 or 60000 <= uid < 65000


def _disk_named(values: dict[str, str], name: str) -> DiskRecord | None:
    record = DiskRecord.from_mapping(values)
    return record if record is not None and record.is_of(name) else None


def _snapshot_named(values: dict[str, str], name: str) -> SnapshotRecord | None:
    record = SnapshotRecord.from_mapping(values)
    return record if record is not None and record.labels.key == name else None


def _image_named(values: dict[str, str], name: str) -> ImageRecord | None:
    record = ImageRecord.from_mapping(values)
    return record if record is not None and f"{record.template}.raw" == name else None
