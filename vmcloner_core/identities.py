"""Who clones are: their identities, decided in planning, and where these are kept on the host.

Each clone with an identity has a folder ``CLONE/`` in the host's state folder::

    record.json              its labels, its identity, its seed, its own values
    ssh_host_ed25519_key     the guest's SSH host key, made before its first boot (a secret)
    known_hosts              the line by which ssh(1) knows the guest from its first boot on
    …                        what the identity provider makes (``seed.iso``)

The folder is filled under another name and then renamed, and renamed back before it is emptied:
under its name it always has its labels.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from vmcloner_core.errors import Conflict, HostCommandError, InvalidRequest
from vmcloner_core.model import (
    Identity,
    Interface,
    Labels,
    Nic,
    Seed,
    Template,
    clone_generation,
)
from vmcloner_core.names import split_clone
from vmcloner_core.placeholders import clone_values, fill

T = TypeVar("T")
RECORD = "record.json"
HOST_KEY = "ssh_host_ed25519_key"
KNOWN_HOSTS = "known_hosts"
MAX_RECORD = 1024**2
"""Characters of a record; what is longer couldn't be read again."""
MAX_KEYS = 65536
"""Bytes of a file of public keys."""
_DRAFT = ".{}.draft"
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_KEY_TYPES = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-")


# --- who a clone is -----------------------------------------------------------------------------


def resolve(
    template: Template,
    labels: Labels,
    nics: tuple[Nic, ...],
    clone: uuid.UUID,
    values: Mapping[str, str | int],
    keys: Sequence[str],
) -> Identity:
    """Return who a clone of a template will be.

    :param keys: the public keys that may log in, as :func:`authorized_keys` gives them.
    :param values: the clone's own; ``hostname``, ``machine_id`` and ``address`` stand in the place
        of the template's.
    :raises InvalidRequest: names the template's key, the clone and the reason.
    """
    spec = template.identity
    known = clone_values(labels, nics, values)

    def text(key: str, value: str) -> str:
        return fill(value, known, what=f"template {template.name}: identity.{key}")

    def refuse(key: str, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{labels.clone}: identity.{key}: {reason}")

    def checked(key: str, value: str, check: Callable[[str], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise refuse(key, str(error)) from error

    hostname = str(values.get("hostname") or text("hostname", spec.hostname))
    if not _HOSTNAME.fullmatch(hostname) or len(hostname) > 253:
        raise refuse("hostname", f"{hostname[:80]!r} is no host name")
    machine_id = str(
        values.get("machine_id")
        or (text("machine_id", spec.machine_id) if spec.machine_id else clone.hex)
    )
    if not _MACHINE_ID.fullmatch(machine_id) or machine_id == "0" * 32:
        raise refuse("machine_id", f"{machine_id[:80]!r} is not 32 hexadecimal digits")
    if len(spec.addresses) > len(nics):
        raise refuse("addresses", f"{len(spec.addresses)} for {len(nics)} network cards")
    addresses = [text("addresses", address) for address in spec.addresses]
    if "address" in values and nics:
        addresses[:1] = [str(values["address"])]
    addresses += ["dhcp"] * (len(nics) - len(addresses))
    return Identity(
        hostname=hostname,
        machine_id=machine_id,
        uuid=clone,
        generation=clone_generation(clone, labels.run),
        interfaces=tuple(
            Interface(mac=nic.mac, address=checked("addresses", address, _address))
            for nic, address in zip(nics, addresses, strict=True)
        ),
        gateway=checked("gateway", text("gateway", spec.gateway), _ip) if spec.gateway else None,
        nameservers=tuple(
            checked("nameservers", text("nameservers", server), _ip) for server in spec.nameservers
        ),
        user=template.ssh.user,
        authorized_keys=tuple(keys),
    )


def _address(text: str) -> str | None:
    if text == "dhcp":
        return None
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length (like 192.0.2.7/24)")
    interface = ipaddress.ip_interface(text)
    network = interface.network
    if network.num_addresses > 2 and interface.ip in (network[0], network[-1]):
        raise ValueError(f"{text} is no host's address in {network}")
    return str(interface)


def _ip(text: str) -> str:
    return str(ipaddress.ip_address(text))


def authorized_keys(template: Template) -> tuple[str, ...]:
    """Return the public keys that may log in to a template's clones.

    :raises InvalidRequest: one isn't a public key, or its file can't be read.
    """
    given = template.identity.authorized_keys
    where = f"template {template.name}: identity.authorized_keys"
    if given is None:
        files = sorted(Path("~/.ssh").expanduser().glob("id_*.pub"))
        found = [line for file in files for line in _key_lines(str(file), where)]
    else:
        found = [line for item in given for line in _key_lines(item, where)]
    return tuple(dict.fromkeys(check_key(line, where) for line in found))


def _key_lines(item: str, where: str) -> list[str]:
    if not item.startswith(("/", "~")):
        return [item]
    path = Path(item).expanduser()
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAX_KEYS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InvalidRequest(f"{where}: can't read {path}: {reason}") from error
    if len(text) > MAX_KEYS:
        raise InvalidRequest(f"{where}: {path} is larger than {MAX_KEYS} bytes")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def check_key(line: str, where: str) -> str:
    """Return a public key in OpenSSH's format (``TYPE BASE64 COMMENT``, sshd(8)), checked.

    :raises InvalidRequest: it isn't one; says why, never more than its beginning.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    shown = line[:40]
    if "PRIVATE KEY" in line:
        raise InvalidRequest(f"{where}: that is a private key", hint="give the .pub file beside it")
    if not line.isprintable() or not line.startswith(_KEY_TYPES):
        raise InvalidRequest(
            f"{where}: {shown!r} is no public key", hint="like: ssh-ed25519 AAAA… user@host"
        )
    if line.startswith("sk-"):  # of a hardware token: not a type that the library reads
        return line
    try:
        load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequest(f"{where}: {shown!r} is no public key: {error}") from error
    return line


# --- where they are kept ------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Record:
    """What is kept of a clone's identity. ``seed.image`` is absolute."""

    labels: Labels
    identity: Identity
    seed: Seed = attrs.field(factory=Seed)
    values: Mapping[str, str | int] = attrs.field(factory=dict)


def check_record(record: Record) -> None:
    """Check that a record can be kept.

    :raises InvalidRequest: it is too long.
    """
    _dumped(record)


@attrs.frozen(kw_only=True)
class Home:
    """A clone's own folder, with its SSH host key."""

    folder: Path
    host_key: str = attrs.field(repr=False)
    host_key_public: str


class Identities:
    """The identities of a host's clones. Thread-safe; one run at a time works on a fleet.

    :param folder: made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, labels: Labels, identity: Identity, values: Mapping[str, str | int]) -> Home:
        """Return a clone's folder with its labels and host key in it; made if it isn't there.

        :raises Conflict: it is another clone's, or not vmcloner's.
        :raises InvalidRequest: there is more to be kept than can be.
        """
        home = self.folder / labels.clone
        record = _dumped(Record(labels=labels, identity=identity, values=values))
        try:
            if not home.exists():
                self._fill(labels.clone, record)
            else:
                self._check(home, labels)
                _write(home / RECORD, record, 0o600)
            private = (home / HOST_KEY).read_text()
            public = (home / KNOWN_HOSTS).read_text().strip().partition(" ")[2]
        except OSError as error:
            raise HostCommandError(f"{labels.clone}: {home}: {error.strerror}") from error
        return Home(folder=home, host_key=private, host_key_public=public)

    def imagined(self, clone: str) -> Home:
        """Return what would be a clone's folder, with a host key that is nobody's."""
        private, public = new_host_key(clone)
        return Home(folder=self.folder / clone, host_key=private, host_key_public=public)

    def seal(self, labels: Labels, seed: Seed) -> None:
        """Keep what the identity provider made of a clone's identity."""
        record = self.find(labels.clone)
        if record is not None:
            path = self.folder / labels.clone / RECORD
            _write(path, _dumped(attrs.evolve(record, seed=seed)), 0o600)

    def remove(self, labels: Labels) -> bool:
        """Remove a clone's folder; tell whether there was one.

        :raises Conflict: it is another clone's, or not vmcloner's.
        """
        home, draft = self._paths(labels.clone)
        try:
            shutil.rmtree(draft, ignore_errors=True)
            if not home.exists():
                return False
            self._check(home, labels)
            home.rename(draft)
            shutil.rmtree(draft)
        except OSError as error:
            raise HostCommandError(f"{labels.clone}: {home}: {error.strerror}") from error
        return True

    def find(self, clone: str) -> Record | None:
        """Return what is kept of a clone's identity, None where nothing is, or not ours."""
        return _loaded(self.folder / clone / RECORD)

    def planned_address(self, clone: str) -> str | None:
        """Return the address that a clone has by plan, None where that is left to DHCP."""
        record = self.find(clone)
        return record.identity.address if record is not None else None

    def records(self) -> tuple[Record, ...]:
        """Return all that is kept."""
        found = (_loaded(path) for path in sorted(self.folder.glob(f"[!.]*/{RECORD}")))
        return tuple(record for record in found if record is not None)

    def unfinished(self) -> frozenset[str]:
        """Return the fleets in which a run was killed while it made or removed a folder."""
        return frozenset(fleet for fleet, _ in self._drafts())

    def sweep(self, fleets: Collection[str]) -> None:
        """Remove what killed runs left half made, or half removed, in fleets that no run is on."""
        for fleet, draft in self._drafts():
            if fleet in fleets:
                shutil.rmtree(draft, ignore_errors=True)

    def _drafts(self) -> Iterator[tuple[str, Path]]:
        for draft in self.folder.glob(_DRAFT.format("*")):
            named = split_clone(draft.name.removeprefix(".").removesuffix(".draft"))
            if named is not None:
                yield named[0], draft

    def _paths(self, clone: str) -> tuple[Path, Path]:
        return self.folder / clone, self.folder / _DRAFT.format(clone)

    def _check(self, home: Path, labels: Labels) -> None:
        held = self.find(home.name)
        if held is None:
            raise Conflict(f"{home} exists and isn't vmcloner's", hint="it is left as it is")
        if not held.labels.same_clone(labels):
            raise Conflict(
                f"{labels.clone}: its identity is kept for template {held.labels.template!r}",
                hint=f"vmcloner delete {labels.clone}",
            )

    def _fill(self, clone: str, record: str) -> None:
        home, draft = self._paths(clone)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # whatever the umask: QEMU's user goes through
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        draft.mkdir()
        draft.chmod(0o755)
        private, public = new_host_key(clone)
        _write(draft / RECORD, record, 0o600)
        _write(draft / HOST_KEY, private, 0o600)
        _write(draft / KNOWN_HOSTS, f"{clone} {public}\n", 0o644)
        draft.rename(home)


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
    """Put a file in its place, whole."""
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
        "identity": attrs.asdict(record.identity),
        "seed": {"image": seed.image and str(seed.image), "cmdline": seed.cmdline},
        "values": dict(record.values),
    }
    text = json.dumps(values, indent=2, default=str, ensure_ascii=False) + "\n"
    if len(text) > MAX_RECORD:
        raise InvalidRequest(
            f"{record.labels.clone}: its values and keys are {len(text)} characters as JSON, "
            f"{MAX_RECORD} can be kept"
        )
    return text


def _loaded(path: Path) -> Record | None:
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as stream:
            data: Any = json.loads(stream.read(MAX_RECORD))
        labels = Labels.from_mapping(data["labels"])
        if labels is None or labels.clone != path.parent.name:
            return None
        identity = dict(data["identity"])
        for key in ("uuid", "generation"):
            identity[key] = uuid.UUID(identity[key])
        for key in ("nameservers", "authorized_keys"):
            identity[key] = tuple(identity[key])
        identity["interfaces"] = tuple(Interface(**card) for card in identity["interfaces"])
        image = data["seed"]["image"]
        return Record(
            labels=labels,
            identity=Identity(**identity),
            seed=Seed(image=image and Path(image), cmdline=data["seed"]["cmdline"]),
            values=data["values"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
