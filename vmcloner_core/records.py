"""Records: what a host keeps of each clone beside its labels.

Labels are set when a clone is created and never change; a record may. It is in a folder of the
clone's own, ``CLONE/`` in the host's state folder::

    record.json              its labels, UUID, MACs, own values, identity, seed and template
    ssh_host_ed25519_key     the guest's SSH host key, made before its first boot (a secret)
    known_hosts              the line by which ssh(1) knows the guest from its first boot
    …                        what the identity provider makes (``seed.iso``)

The template is kept as it was when the clone was made, so the clone can be reached, started and
reset from any folder, even after the template's file has changed or is gone.

Only clones with an identity have the key files. The folder is filled under a temporary name and
then renamed, and renamed back before it is emptied: under its own name it always has labels.
What is written is on the disk before it gets its name, so a power cut never leaves half a record.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import attrs

from vmcloner_core.drivers import IdentityRequest
from vmcloner_core.errors import Conflict, InvalidRequest, VmclonerError
from vmcloner_core.model import (
    MAX_TTL,
    CloneSpec,
    Domain,
    Identity,
    Interface,
    Labels,
    Lease,
    Moment,
    Outcome,
    Seed,
    Template,
    Values,
    clone_uuid,
)
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import of_state
from vmcloner_core.tomlfile import structure
from vmcloner_core.trusted_files import make_folder, read_file, replacing

RECORD = "record.json"
HOST_KEY = "ssh_host_ed25519_key"
KNOWN_HOSTS = "known_hosts"
MAX_RECORD = 1024**2
"""Characters of a record; a longer one couldn't be read again."""
MAX_WALL = 2**33
"""Seconds since the epoch; a record with a later time is damaged."""
_DRAFT = re.compile(r"\.(.+)\.draft")
SYNCS = 8
"""Calls of fsync(2) at once: a file system can serve them all by one write of its journal."""


@attrs.frozen(kw_only=True)
class Record:
    """A clone's record. ``seed.image`` is absolute.

    :param uuid, macs: its domain's, the same each time that is defined.
    :param identity: None for a clone whose template has no identity provider.
    :param restart: whether a run stopped it to start it again, and hasn't started it yet.
    :param made_of: the template that it was made of, as plain data; None in records by versions
        that didn't keep it.
    :param ran: the scripts and playbooks that have run on its present disk, by name: the digest of
        each.
    :param reverting: the snapshot that a run reverts it to; after a kill, that it was reverting to.
    :param ready: when the run of its domain was started in which it got ready, and what was waited
        for; empty if it isn't known to be ready.
    :param lease: until when it is wanted; None if it has no lease, and never expires.
    """

    labels: Labels
    uuid: uuid.UUID
    macs: tuple[str, ...] = ()
    values: Values = attrs.field(factory=dict)
    identity: Identity | None = None
    seed: Seed = attrs.field(factory=Seed)
    restart: bool = False
    reverting: str = ""
    made_of: Mapping[str, Any] | None = None
    ready: str = ""
    ran: Mapping[str, str] = attrs.field(factory=dict)
    lease: Lease | None = None

    @classmethod
    def of(cls, spec: CloneSpec) -> Self:
        """Return the record of a clone to make."""
        return cls(
            labels=spec.labels,
            uuid=spec.uuid,
            macs=spec.macs,
            values=spec.values,
            identity=spec.identity,
            made_of=_plain(spec.template),
            lease=spec.lease,
        )

    def template(self) -> Template | None:
        """Return the template that the clone was made of; None if it isn't known."""
        return _template(json.dumps(self.made_of)) if self.made_of is not None else None


def _plain(template: Template) -> dict[str, Any]:
    return attrs.asdict(
        template, value_serializer=lambda _i, _a, v: str(v) if isinstance(v, Path) else v
    )


@functools.lru_cache(maxsize=64)  # all clones of a fleet have the same one
def _template(text: str) -> Template | None:
    """Return the template that a record has as JSON; None if this version can't read it."""
    try:
        return structure(json.loads(text), Template, where=RECORD)
    except InvalidRequest:
        return None


def check_record(spec: CloneSpec) -> None:
    """Check that a clone's record isn't too long.

    :raises InvalidRequest: it is.
    """
    _dumped(Record.of(spec))


@attrs.frozen(kw_only=True)
class Home:
    """A clone's own folder, with its SSH host key."""

    folder: Path
    host_key: str = attrs.field(repr=False)
    host_key_public: str


def identity_request(spec: CloneSpec, home: Home) -> IdentityRequest:
    """Return the identity provider's request for a clone that has an identity."""
    assert spec.identity is not None  # noqa: S101 - callers pass only such clones
    return IdentityRequest(
        labels=spec.labels,
        template=spec.template,
        identity=spec.identity,
        nics=spec.nics,
        values=spec.values,
        folder=home.folder,
        host_key=home.host_key,
        host_key_public=home.host_key_public,
    )


def known_uuid(
    labels: Labels, domain: Domain | None, record: Record | None, seed: str
) -> uuid.UUID:
    """Return a clone's UUID: its domain's, else its record's, else the one that its name gives.

    :param seed: the seed of the UUIDs of the host's clones.
    """
    if domain is not None:
        return domain.uuid
    if record is not None:
        return record.uuid
    return clone_uuid(seed, labels.fleet, labels.index, labels.template)


class Records:
    """The records of a host's clones. Thread-safe; only one run at a time works on a fleet.

    :param folder: created when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, spec: CloneSpec) -> None:
        """Write a clone's record, with a host key if it has an identity.

        The host key of an earlier record of the same clone is kept.

        :raises Conflict: the folder is another clone's, or not vmcloner's.
        :raises InvalidRequest: the record is too long.
        """
        for outcome in self.keep_all([spec]):
            outcome.unwrap()

    def keep_all(self, specs: Sequence[CloneSpec]) -> Iterator[Outcome[None]]:
        """Write clones' records as :meth:`keep` does; keys are their names.

        All are on the disk when the first outcome is yielded: one power cut loses no identity
        whose clone was defined.
        """
        outcomes: list[Outcome[None]] = []
        filled: dict[str, Path] = {}
        for spec in specs:
            try:
                draft = self._kept(spec)
            except VmclonerError as error:
                outcomes.append(Outcome(key=spec.name, error=error))
            else:
                if draft is None:
                    outcomes.append(Outcome(key=spec.name))
                else:
                    filled[spec.name] = draft
        outcomes += self._published(filled)
        yield from outcomes

    def _kept(self, spec: CloneSpec) -> Path | None:
        """Write a clone's record: into its folder, or for a new one into the draft returned."""
        home = self.folder / spec.name
        text = _dumped(Record.of(spec))
        with _translated(spec.name, home):
            if not home.exists():
                return self._fill(spec.name, text, key=spec.identity is not None)
            self._check(home, spec.labels)
            kept = self.find(spec.name)  # defined again: its disk may be the one that it had
            if kept is not None:  # and a lease that was granted isn't changed by a create
                record = attrs.evolve(Record.of(spec), ran=kept.ran, lease=kept.lease)
                text = _dumped(record)
            if spec.identity is not None and not (home / KNOWN_HOSTS).exists():
                _write_host_key(home, spec.name)
            _write(home / RECORD, text, 0o600)
        return None

    def _published(self, filled: Mapping[str, Path]) -> Iterator[Outcome[None]]:
        """Give new folders, by their clones' names, their own names once they are on the disk."""

        def synced(clone: str) -> Outcome[None]:
            try:
                with _translated(clone, filled[clone]):
                    for file in filled[clone].iterdir():
                        sync(file)
            except VmclonerError as error:
                return Outcome(key=clone, error=error)
            return Outcome(key=clone)

        with ThreadPoolExecutor(SYNCS) as pool:
            outcomes = list(pool.map(synced, filled))
        named: list[str] = []
        for outcome in outcomes:
            try:
                outcome.unwrap()
                with _translated(outcome.key, filled[outcome.key]):
                    filled[outcome.key].rename(self.folder / outcome.key)
                named.append(outcome.key)
            except VmclonerError as error:
                yield Outcome(key=outcome.key, error=error)
        yield from self._kept_names(named)

    def _kept_names(self, clones: Sequence[str]) -> Iterator[Outcome[None]]:
        """Write the folder's names to the disk; and all before them, which file systems order."""
        error: VmclonerError | None = None
        if clones:
            try:
                with _translated(clones[0], self.folder):
                    sync(self.folder)
            except VmclonerError as raised:
                error = raised
        yield from (Outcome(key=clone, error=error) for clone in clones)

    def home(self, clone: str) -> Home:
        """Return the folder of a clone with an identity.

        :raises HostCommandError: it can't be read.
        """
        home = self.folder / clone
        with _translated(clone, home):
            private = (home / HOST_KEY).read_text()
            public = (home / KNOWN_HOSTS).read_text().strip().partition(" ")[2]
        return Home(folder=home, host_key=private, host_key_public=public)

    def imagined(self, clone: str) -> Home:
        """Return what would be a clone's folder, with a host key that is not used."""
        private, public = new_host_key(clone)
        return Home(folder=self.folder / clone, host_key=private, host_key_public=public)

    def known_hosts(self, clone: str) -> Path | None:
        """Return a clone's known_hosts file for ssh(1), None if it has no host key.

        :raises HostCommandError: its folder can't be read.
        """
        file = self.folder / clone / KNOWN_HOSTS
        with _translated(clone, file):
            return file if file.exists() else None

    def update(self, clone: str, *, lasting: bool = True, **changes: Any) -> None:
        """Change fields of a clone's record, if it has one and they differ.

        :param lasting: wait until that is on the disk.
        :raises HostCommandError: it can't be written.
        """
        record = self.find(clone)
        changed = attrs.evolve(record, **changes) if record is not None else None
        if changed is not None and changed != record:
            path = self.folder / clone / RECORD
            with _translated(clone, path):
                _write(path, _dumped(changed), 0o600, lasting=lasting)

    def note_seed(self, clone: str, seed: Seed) -> None:
        """Write a clone's seed to the disk, and note it in the clone's record.

        :raises HostCommandError: that fails.
        """
        if seed.image is not None:
            with _translated(clone, seed.image):
                sync(seed.image)
        self.update(clone, seed=seed)

    def note_restart(
        self, clone: str, *, wanted: bool, stopped: bool = False, missing: Record | None = None
    ) -> None:
        """Note whether a clone was stopped to be started again; see :class:`Record`.

        :param stopped: it is being stopped now, and so isn't ready any more.
        :param missing: what to write if a restart is wanted and the clone has no record.
        """
        if wanted and missing is not None and not os.path.lexists(self.folder / clone):
            text = _dumped(attrs.evolve(missing, restart=True))
            with _translated(clone, self.folder):
                draft = self._fill(clone, text)
            for outcome in self._published({clone: draft}):
                outcome.unwrap()
        else:
            changes: dict[str, Any] = {"ready": ""} if stopped else {}
            self.update(clone, restart=wanted, **changes)

    def check(self, labels: Labels) -> None:
        """Check that :meth:`remove` would remove a clone's folder, if there is one.

        :raises Conflict: it is damaged, another clone's, or not vmcloner's.
        """
        home = self.folder / labels.clone
        with contextlib.suppress(OSError):  # what can't be read fails its own clone
            if home.exists():
                self._check(home, labels)

    def remove(self, labels: Labels) -> bool:
        """Remove a clone's folder; returns whether there was one.

        :raises Conflict: it is another clone's, or not vmcloner's.
        """
        home, draft = self.folder / labels.clone, self._draft(labels.clone)
        with _translated(labels.clone, home):
            shutil.rmtree(draft, ignore_errors=True)
            if not home.exists():
                return False
            self._check(home, labels)
            home.rename(draft)
            shutil.rmtree(draft)
        return True

    def adopt(self, record: Record, host_key: tuple[str, str] | None) -> None:
        """Write the record of a clone that comes from another host. Idempotent.

        :param host_key: its SSH host key, private and public; None if it has none.
        :raises Conflict: the folder is another clone's, or not vmcloner's.
        """
        clone, text = record.labels.clone, _dumped(record)
        home = self.folder / clone
        with _translated(clone, home):
            if home.exists():
                self._check(home, record.labels)
                _write(home / RECORD, text, 0o600)
                return
            draft = self._fill(clone, text)
            if host_key is not None:
                _create(draft / HOST_KEY, host_key[0], 0o600)
                _create(draft / KNOWN_HOSTS, f"{clone} {host_key[1]}\n", 0o644)
        for outcome in self._published({clone: draft}):
            outcome.unwrap()

    def find(self, clone: str) -> Record | None:
        """Return a clone's record, None if there is none, or none of ours."""
        return _loaded(self.folder / clone / RECORD)

    def leases(self, clones: Collection[str]) -> dict[str, Lease]:
        """Return the leases of those of these clones that have one, by name."""
        found = ((name, _lease_in(self.folder / name / RECORD)) for name in clones)
        return {name: lease for name, lease in found if lease is not None}

    def planned_address(self, clone: str) -> str | None:
        """Return a clone's static address, None if it uses DHCP."""
        record = self.find(clone)
        if record is None or record.identity is None:
            return None
        return record.identity.address

    def names(self) -> frozenset[str]:
        """Return the names of the clones that have a folder, without reading records."""
        return frozenset(name for name in _entries(self.folder) if not name.startswith("."))

    def of(self, names: Collection[str]) -> dict[str, Record]:
        """Return the existing records of these clones, by name."""
        found = ((name, self.find(name)) for name in sorted(names))
        return {name: record for name, record in found if record is not None}

    def static_macs(self) -> frozenset[str]:
        """Return the MAC addresses of all cards with static addresses."""
        records = self.of(self.names()).values()
        identities = (record.identity for record in records)
        return frozenset().union(*(who.static_macs for who in identities if who is not None))

    def unfinished(self) -> frozenset[str]:
        """Return the fleets in which a run was killed while it created or removed a folder."""
        return frozenset(self.drafts())

    def drafts(self, inside: Collection[str] = ()) -> dict[str, list[Path]]:
        """Return the partial folders and files that killed runs left, by fleet.

        :param inside: the fleets in whose clones' folders to look for files too.
        """
        found: dict[str, list[Path]] = {}
        for name in _entries(self.folder):
            draft = _DRAFT.fullmatch(name)
            named = split_clone(draft[1]) if draft is not None else None
            if named is not None:
                found.setdefault(named[0], []).append(self.folder / name)
        for name in self.names() if inside else ():
            named = split_clone(name)
            if named is not None and named[0] in inside:
                home = self.folder / name
                drafts = [home / file for file in _entries(home) if file.startswith(".")]
                found.setdefault(named[0], []).extend(drafts)
        return {fleet: paths for fleet, paths in found.items() if paths}

    def _draft(self, clone: str) -> Path:
        return self.folder / f".{clone}.draft"

    def _check(self, home: Path, labels: Labels) -> None:
        held = self.find(home.name)
        if held is None and (home / RECORD).exists():
            with (home / RECORD).open("rb") as stream:
                stream.read(1)  # what can't be read isn't damaged: that is an OSError
            held = self.find(home.name)
        if held is None and (home / RECORD).exists():
            raise Conflict(
                f"{labels.clone}: {home / RECORD} is damaged or another clone's",
                hint=f"rm -r {home}, then run the same command again",
            )
        if held is None:
            raise Conflict(f"{home} exists and isn't vmcloner's", hint="it was not changed")
        if not held.labels.same_clone(labels):
            raise Conflict(
                f"{labels.clone}: its record is for template {held.labels.template!r}",
                hint=f"vmcloner delete {labels.clone}",
            )

    def _fill(self, clone: str, record: str, *, key: bool = False) -> Path:
        """Return a new folder under its temporary name; its files may not be on the disk yet."""
        draft = self._draft(clone)
        make_folder(self.folder)
        self.folder.chmod(0o755)  # whatever the umask: QEMU's user must get through
        shutil.rmtree(draft, ignore_errors=True)  # left by a killed run
        draft.mkdir()
        draft.chmod(0o755)
        _create(draft / RECORD, record, 0o600)
        if key:
            _write_host_key(draft, clone, _create)
        return draft


def sync(path: Path) -> None:
    """Write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[str]:
    """Return the names in a folder, none if it isn't there or is no folder."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - only names are wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise of_state(error, folder) from error


@contextlib.contextmanager
def _translated(clone: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of_state(error, f"{clone}: {path}") from error


def _create(path: Path, text: str, mode: int) -> None:
    """Write a file in a folder that nobody reads yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path, flags, mode)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as stream:
        os.fchmod(handle, mode)  # whatever the umask
        stream.write(text)


def _write(path: Path, text: str, mode: int, *, lasting: bool = True) -> None:
    """Replace a file, at once. One run at a time writes to a clone's folder.

    :param lasting: wait until it is on the disk.
    """
    with replacing(path, mode, lasting=lasting) as stream:
        stream.write(text.encode("utf-8", "surrogatepass"))


def _write_host_key(
    folder: Path, clone: str, write: Callable[[Path, str, int], None] = _write
) -> None:
    private, public = new_host_key(clone)
    write(folder / HOST_KEY, private, 0o600)
    write(folder / KNOWN_HOSTS, f"{clone} {public}\n", 0o644)


def new_host_key(comment: str) -> tuple[str, str]:
    """Return a new Ed25519 key in OpenSSH's formats: (private, public with ``comment``)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), f"{public.decode()} {comment}"


def _dumped(record: Record) -> str:
    seed = record.seed
    values = {
        "labels": record.labels.to_mapping(),
        "uuid": record.uuid,
        "macs": record.macs,
        "values": dict(record.values),
        "identity": record.identity and attrs.asdict(record.identity),
        "template": record.made_of,
        "restart": record.restart,
        "reverting": record.reverting,
        "ready": record.ready,
        "ran": dict(record.ran),
        "lease": record.lease and attrs.asdict(record.lease),
        "seed": {"image": seed.image and str(seed.image), "cmdline": seed.cmdline},
    }
    text = json.dumps(values, default=str, ensure_ascii=False) + "\n"
    if len(text) > MAX_RECORD:
        raise InvalidRequest(
            f"{record.labels.clone}: its values, keys and template are {len(text)} characters "
            f"as JSON, more than {MAX_RECORD}"
        )
    return text


def record_text(record: Record) -> str:
    """Return a record as text, for :func:`record_of` on another host."""
    return _dumped(record)


def record_of(text: str, clone: str) -> Record | None:
    """Return the record of a clone that text holds; None if it is none, or another clone's."""
    try:
        return _record(json.loads(text), clone) if len(text) <= MAX_RECORD else None
    except (ValueError, RecursionError):
        return None


def _read(path: Path) -> Any:
    content = read_file(path, trusted=False, limit=4 * MAX_RECORD)
    return json.loads(content.decode("utf-8", "surrogatepass"))


def _lease_in(path: Path) -> Lease | None:
    """Return the lease in a record's file, without reading the rest of it."""
    try:
        data = _read(path)
        return read_lease(data.get("lease")) if data["labels"] else None
    except (VmclonerError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def read_lease(data: object) -> Lease | None:
    """Return a lease from plain data; None, which never expires, if it isn't one."""
    match data:
        case {"granted": granted, "ttl": int(ttl)} if 0 <= ttl <= MAX_TTL:
            moment = read_moment(granted)
            return None if moment is None else Lease(granted=moment, ttl=ttl)
    return None


def read_moment(data: object) -> Moment | None:
    """Return a moment from plain data; None if it isn't one."""
    try:
        match data:
            case {"wall": wall, "boot": str(boot), "up": up}:
                moment = Moment(wall=float(wall), boot=boot, up=float(up))
                return moment if 0 <= moment.wall < MAX_WALL and math.isfinite(moment.up) else None
    except (ValueError, TypeError, OverflowError):
        pass
    return None


def _loaded(path: Path) -> Record | None:
    try:
        return _record(_read(path), path.parent.name)
    except (VmclonerError, ValueError, RecursionError):
        return None


def _record(data: Any, clone: str) -> Record | None:
    """Return a clone's record from plain data; None if it isn't one, or another clone's."""
    try:
        labels = Labels.from_mapping(data["labels"])
        if labels is None or labels.clone != clone:
            return None
        if "uuid" not in data:  # by a version that kept records only of clones with an identity
            data["uuid"] = data["identity"]["uuid"]
            data["macs"] = [card["mac"] for card in data["identity"]["interfaces"]]
        image = data["seed"]["image"]
        return Record(
            labels=labels,
            uuid=uuid.UUID(data["uuid"]),
            macs=tuple(data["macs"]),
            values=data["values"],
            restart=data.get("restart") is True,
            reverting=str(data.get("reverting") or ""),
            ready=str(data.get("ready") or ""),
            ran=_table(data.get("ran")) or {},
            identity=data["identity"] and _identity(data["identity"]),
            seed=Seed(image=image and Path(image), cmdline=data["seed"]["cmdline"]),
            made_of=_table(data.get("template")),
            lease=read_lease(data.get("lease")),
        )
    except (VmclonerError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _table(data: object) -> dict[str, Any] | None:
    return data if isinstance(data, dict) else None


def _identity(data: dict[str, Any]) -> Identity:
    values = dict(data)
    for key in ("uuid", "generation"):
        values[key] = uuid.UUID(values[key])
    for key in ("nameservers", "authorized_keys"):
        values[key] = tuple(values[key])
    values["interfaces"] = tuple(Interface(**card) for card in values["interfaces"])
    return Identity(**values)
