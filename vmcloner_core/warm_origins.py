"""Warm origins: the memory of guests that have booted, which clones are forked from.

One is made from a template, for one pool and one hypervisor. Its folder in the host's state folder
belongs to root, since memory has secrets::

    KEY/origin.json       what it is, written last: without it the folder is a leftover
    KEY/…                 what the hypervisor saved (:class:`~vmcloner_core.drivers.WarmInterface`)
    forks/CLONE           a clone that has not continued yet, and from which origin it will
    forks/.CLONE          one that has, and isn't known to have become somebody of its own

A clone has its file in ``forks`` before its disk is made, so it is *saved* from its birth on. The
file is renamed before its guest continues, and removed once that has become the clone. So after a
kill it is known which guests may not be believed: they are powered off, and boot from their disks.

The disk of an origin is an image in its pool, under the name :attr:`WarmOrigin.image`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import warm_image
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import allocated, of_state
from vmcloner_core.records import sync
from vmcloner_core.trusted_files import make_folder, read_file, replacing

ORIGIN = "origin.json"
FORKS = "forks"
AT = "at"
"""What a parent had reached when it was saved: the one part that a fork does not depend on."""
READY = "ready"
""":data:`AT` of a parent that was as ready as its template's clones are."""
IDENTICAL = "identical"
"""In ``depends`` of an origin whose forks stay who their parent was; nobody has asked its guest
whether it can become another."""
_KEY = re.compile("[0-9a-f]{20}")


@attrs.frozen(kw_only=True)
class WarmOrigin:
    """The memory and the disk of a guest that has booted.

    :param depends: what they depend on, in short texts by subject; with :data:`AT`.
    :param folder: with the memory. :param made: seconds since the epoch.
    """

    template: str
    pool: str
    hypervisor: str
    depends: Mapping[str, str]
    folder: Path
    made: float

    @property
    def key(self) -> str:
        """Its name, which no other has: of one made later from the same, neither."""
        own = [self.template, self.pool, self.hypervisor, sorted(self.depends.items()), self.made]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()[:20]

    @property
    def image(self) -> str:
        """The name of its disk in the pool, among the images of templates."""
        return warm_image(self.key)

    @property
    def digest(self) -> str:
        """What the pool keeps as the source of its disk."""
        return f"warm:{self.key}"

    @property
    def identical(self) -> bool:
        """Whether its forks are exact copies of its guest, instead of machines of their own."""
        return IDENTICAL in self.depends

    @property
    def purpose(self) -> tuple[str, str, str, bool]:
        """What it is for: a new one replaces those before it."""
        return self.template, self.pool, self.hypervisor, self.identical

    @property
    def size(self) -> int:
        """Bytes that its folder takes."""
        return allocated(self.folder)

    def fits(self, depends: Mapping[str, str]) -> bool:
        """Tell whether clones that depend on this can be forked from it."""
        return _without_aim(depends) == _without_aim(self.depends)


def _without_aim(depends: Mapping[str, str]) -> Mapping[str, str]:
    return {subject: text for subject, text in depends.items() if subject != AT}


class WarmOrigins:
    """The warm origins of one host, and which clones wait to be forked. Thread-safe.

    :param folder: made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(
        self, template: str, pool: str, hypervisor: str, depends: Mapping[str, str]
    ) -> WarmOrigin:
        """Return an origin to make now."""
        origin = WarmOrigin(
            template=template,
            pool=pool,
            hypervisor=hypervisor,
            depends=depends,
            folder=self.folder,
            made=time.time(),
        )
        return attrs.evolve(origin, folder=self.folder / origin.key)

    # --- origins --------------------------------------------------------------------------------

    def all(self) -> tuple[WarmOrigin, ...]:
        """Return all origins that are whole, the newest first."""
        found = [self.find(name) for name in _names(self.folder) if _KEY.fullmatch(name)]
        return tuple(sorted((o for o in found if o is not None), key=lambda o: -o.made))

    def find(self, key: str) -> WarmOrigin | None:
        """Return an origin, None if there is none, or if it isn't whole."""
        folder = self.folder / key
        try:
            data = json.loads(read_file(folder / ORIGIN, trusted=True))
            found = WarmOrigin(
                template=str(data["template"]),
                pool=str(data["pool"]),
                hypervisor=str(data["hypervisor"]),
                depends={str(subject): str(text) for subject, text in data["depends"].items()},
                folder=folder,
                made=float(data["made"]),
            )
        except (VmclonerError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return found if found.key == key else None

    def draft(self, origin: WarmOrigin) -> None:
        """Make the empty folder of an origin that is to be made."""
        folder = origin.folder
        try:
            make_folder(self.folder)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise of_state(error, folder) from error

    def keep(self, origin: WarmOrigin) -> None:
        """Note that an origin is whole. Its folder has the memory, its pool the disk."""
        data = attrs.asdict(origin, filter=lambda field, _value: field.name != "folder")
        try:
            with replacing(origin.folder / ORIGIN, 0o600) as stream:
                stream.write(json.dumps(data).encode())
        except OSError as error:
            raise of_state(error, origin.folder) from error

    def remove(self, key: str) -> None:
        """Remove an origin's folder, its note first. Idempotent; forks that run go on."""
        folder = self.folder / key
        try:
            (folder / ORIGIN).unlink(missing_ok=True)
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise of_state(error, folder) from error

    def drafts(self) -> Iterator[str]:
        """Yield the keys of folders without a whole origin."""
        for name in _names(self.folder):
            if _KEY.fullmatch(name) and self.find(name) is None:
                yield name

    # --- clones ---------------------------------------------------------------------------------

    def waiting(self) -> Mapping[str, bool]:
        """Return the clones that are to be forked; False for those whose guests have continued."""
        found: dict[str, bool] = {}
        for name in _names(self.folder / FORKS):
            clone = name.removeprefix(".")
            if split_clone(clone) is not None:
                found[clone] = not name.startswith(".")
        return found

    def fork_of(self, clone: str) -> tuple[WarmOrigin, float] | None:
        """Return the origin that a clone is to be forked from, and since when; None if it isn't."""
        file = self.folder / FORKS / clone
        try:
            key = read_file(file, trusted=True, limit=64).decode("ascii")
            since = file.stat().st_mtime
        except (VmclonerError, OSError, ValueError):
            return None
        origin = self.find(key) if _KEY.fullmatch(key) else None
        return (origin, since) if origin is not None else None

    def wait(self, clone: str, key: str) -> None:
        """Note that a clone, whose disk is new or about to be made, is to be forked."""
        folder = self.folder / FORKS
        try:
            make_folder(folder)
            (folder / f".{clone}").unlink(missing_ok=True)
            with replacing(folder / clone, 0o600, lasting=False) as stream:
                stream.write(key.encode())
        except OSError as error:
            raise of_state(error, folder / clone) from error

    def begin(self, clone: str) -> None:
        """Note, on the disk, that a clone's guest continues now: it can't be forked again."""
        folder = self.folder / FORKS
        try:
            (folder / clone).rename(folder / f".{clone}")
            sync(folder)
        except OSError as error:
            raise of_state(error, folder / clone) from error

    def end(self, clone: str) -> bool:
        """Forget that a clone is to be forked: it has become somebody, or boots from its disk.

        :returns: whether that was known.
        """
        folder, known = self.folder / FORKS, False
        for file in (folder / clone, folder / f".{clone}"):
            try:
                file.unlink()
                known = True
            except FileNotFoundError:
                continue
            except OSError as error:
                raise of_state(error, file) from error
        return known

    def users(self, key: str) -> tuple[str, ...]:
        """Return the clones that are still to be forked from an origin."""
        found = []
        for clone, fresh in self.waiting().items():
            fork = self.fork_of(clone) if fresh else None
            if fork is not None and fork[0].key == key:
                found.append(clone)
        return tuple(found)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as error:
        raise of_state(error, folder) from error
