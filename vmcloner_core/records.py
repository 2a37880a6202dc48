"""Records: what a host keeps of each clone beside its labels.

Labels are set when a clone is created and never change; a record may. It is in a folder of the
clone's own, ``CLONE/`` in the host's state folder::

    record.json              its labels, UUID, MAC addresses, own values, identity and seed
    ssh_host_ed25519_key     the guest's SSH host key, made before its first boot (a secret)
    known_hosts              the line by which ssh(1) knows the guest from its first boot
    …                        what the identity provider makes (``seed.iso``)

Only clones with an identity have the key files. The folder is filled under a temporary name and
then renamed, and renamed back before it is emptied: under its own name it always has labels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from vmcloner_core.drivers import IdentityRequest
from vmcloner_core.errors import Conflict, HostCommandError, InvalidRequest
from vmcloner_core.model import (
    CloneSpec,
    Domain,
    Identity,
    Interface,
    Labels,
    Seed,
    Values,
    clone_uuid,
)
from vmcloner_core.names import split_clone

RECORD = "record.json"
HOST_KEY = "ssh_host_ed25519_key"
KNOWN_HOSTS = "known_hosts"
MAX_RECORD = 1024**2
"""Characters of a record; a longer one couldn't be read again."""
_DRAFT = ".{}.draft"


@attrs.frozen(kw_only=True)
class Record:
    """A clone's record. ``seed.image`` is absolute.

    :param uuid, macs: its domain's, the same each time that is defined.
    :param identity: None for a clone whose template has no identity provider.
    :param restart: whether a run stopped it to start it again, and hasn't started it yet.
    """

    labels: Labels
    uuid: uuid.UUID
    macs: tuple[str, ...] = ()
    values: Values = attrs.field(factory=dict)
    identity: Identity | None = None
    seed: Seed = attrs.field(factory=Seed)
    restart: bool = False

    @classmethod
    def of(cls, spec: CloneSpec) -> Self:
        """Return the record of a clone to make."""
        return cls(
            labels=spec.labels,
            uuid=spec.uuid,
            macs=spec.macs,
            values=spec.values,
            identity=spec.identity,
        )


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
        home = self.folder / spec.name
        text = _dumped(Record.of(spec))
        with _translated(spec.name, home):
            if not home.exists():
                self._fill(spec, text)
                return
            self._check(home, spec.labels)
            if spec.identity is not None and not (home / KNOWN_HOSTS).exists():
                _write_host_key(home, spec.name)
            _write(home / RECORD, text, 0o600)

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

    def update(self, clone: str, **changes: Any) -> None:
        """Change fields of a clone's record, if it has one and they differ.

        :raises HostCommandError: it can't be written.
        """
        record = self.find(clone)
        changed = attrs.evolve(record, **changes) if record is not None else None
        if changed is not None and changed != record:
            path = self.folder / clone / RECORD
            with _translated(clone, path):
                _write(path, _dumped(changed), 0o600)

    def note_restart(self, clone: str, *, wanted: bool) -> None:
        """Note whether a clone was stopped to be started again; see :class:`Record`."""
        self.update(clone, restart=wanted)

    def remove(self, labels: Labels) -> bool:
        """Remove a clone's folder; returns whether there was one.

        :raises Conflict: it is another clone's, or not vmcloner's.
        """
        home, draft = self._paths(labels.clone)
        with _translated(labels.clone, home):
            shutil.rmtree(draft, ignore_errors=True)
            if not home.exists():
                return False
            self._check(home, labels)
            home.rename(draft)
            shutil.rmtree(draft)
        return True

    def find(self, clone: str) -> Record | None:
        """Return a clone's record, None if there is none, or none of ours."""
        return _loaded(self.folder / clone / RECORD)

    def planned_address(self, clone: str) -> str | None:
        """Return a clone's static address, None if it uses DHCP."""
        record = self.find(clone)
        if record is None or record.identity is None:
            return None
        return record.identity.address

    def names(self) -> frozenset[str]:
        """Return the names of the clones that have a folder, without reading records."""
        return frozenset(name for name in self._entries() if not name.startswith("."))

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HostCommandError(f"{self.folder}: {error.strerror}") from error

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

    def drafts(self) -> dict[str, list[Path]]:
        """Return the partial folders that killed runs left, by fleet."""
        found: dict[str, list[Path]] = {}
        for name in self._entries():
            named = split_clone(name.removeprefix(".").removesuffix(".draft"))
            if named is not None and name == _DRAFT.format(f"{named[0]}-{named[1]}"):
                found.setdefault(named[0], []).append(self.folder / name)
        return found

    def _paths(self, clone: str) -> tuple[Path, Path]:
        return self.folder / clone, self.folder / _DRAFT.format(clone)

    def _check(self, home: Path, labels: Labels) -> None:
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

    def _fill(self, spec: CloneSpec, record: str) -> None:
        home, draft = self._paths(spec.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # whatever the umask: QEMU's user must get through
        shutil.rmtree(draft, ignore_errors=True)  # left by a killed run
        draft.mkdir()
        draft.chmod(0o755)
        _write(draft / RECORD, record, 0o600)
        if spec.identity is not None:
            _write_host_key(draft, spec.name)
        draft.rename(home)


@contextlib.contextmanager
def _translated(clone: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostCommandError(f"{clone}: {path}: {error.strerror}") from error


def _write_host_key(folder: Path, clone: str) -> None:
    private, public = new_host_key(clone)
    _write(folder / HOST_KEY, private, 0o600)
    _write(folder / KNOWN_HOSTS, f"{clone} {public}\n", 0o644)


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


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file atomically."""
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from birth
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as stream:
            stream.write(text)
        Path(draft).chmod(mode)
        Path(draft).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(draft).unlink()
        raise


def _dumped(record: Record) -> str:
    seed = record.seed
    values = {
        "labels": record.labels.to_mapping(),
        "uuid": record.uuid,
        "macs": record.macs,
        "values": dict(record.values),
        "identity": record.identity and attrs.asdict(record.identity),
        "restart": record.restart,
        "seed": {"image": seed.image and str(seed.image), "cmdline": seed.cmdline},
    }
    text = json.dumps(values, indent=2, default=str, ensure_ascii=False) + "\n"
    if len(text) > MAX_RECORD:
        raise InvalidRequest(
            f"{record.labels.clone}: its values and keys are {len(text)} characters as JSON, "
            f"more than {MAX_RECORD}"
        )
    return text


def _loaded(path: Path) -> Record | None:
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as stream:
            data: Any = json.loads(stream.read(MAX_RECORD))
        labels = Labels.from_mapping(data["labels"])
        if labels is None or labels.clone != path.parent.name:
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
            identity=data["identity"] and _identity(data["identity"]),
            seed=Seed(image=image and Path(image), cmdline=data["seed"]["cmdline"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _identity(data: dict[str, Any]) -> Identity:
    values = dict(data)
    for key in ("uuid", "generation"):
        values[key] = uuid.UUID(values[key])
    for key in ("nameservers", "authorized_keys"):
        values[key] = tuple(values[key])
    values["interfaces"] = tuple(Interface(**card) for card in values["interfaces"])
    return Identity(**values)
