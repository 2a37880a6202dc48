"""Claims: who uses the clones of a pool, and until when.

Each clone of a pool has a file of its own beside its record, ``CLONE/pool.json``: where it is
reached, since when it is ready, and its claim. A claim is a lease. Without one, the clone is as new
and nobody uses it. While it lasts, the clone is its holder's. Once it has ended, by time or because
it was given back, the clone is used, and is reset before the next one gets it. So whatever kills a
holder, its clones come back.

The file is changed with the lock of the clone's claim held, for milliseconds, and never with the
fleet's, which runs hold for minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Lease, Moment
from vmcloner_core.records import Record, Records, read_lease, read_moment
from vmcloner_core.trusted_files import read_file

FILE = "pool.json"
MAX_FILE = 64 * 1024
POLL = 0.002
MAX_WHO = 200
"""Characters that say who holds a claim."""


@attrs.frozen(kw_only=True)
class Claim:
    """A lease on a clone of a pool.

    :param holder: random; tells this claim from all others. :param who: the same for people.
    """

    holder: str
    who: str
    lease: Lease

    @classmethod
    def new(cls, lease: Lease, who: str) -> Claim:
        """Return a claim that no other one equals."""
        return cls(holder=secrets.token_hex(8), who=who[:MAX_WHO], lease=lease)


@attrs.frozen(kw_only=True)
class Membership:
    """What is known of a clone of a pool, without asking its hypervisor.

    :param address: where it was reached when it got ready; None if it has no address.
    :param since: when it got ready. After the host has booted again it isn't.
    :param claim: None if it is as new and nobody uses it.
    """

    address: str | None
    since: Moment
    claim: Claim | None = None

    def free(self, now: Moment) -> bool:
        """Tell whether it can be taken."""
        return self.claim is None and self.since.boot == now.boot

    def held(self, now: Moment) -> bool:
        """Tell whether somebody uses it."""
        return self.claim is not None and self.claim.lease.left(now) > 0


class Claims:
    """The claims on the clones of one host. Thread-safe, also between processes.

    :param hold_free: holds those locks that nobody holds; yields their names.
    """

    def __init__(
        self,
        records: Records,
        hold_free: Callable[[Collection[str]], AbstractContextManager[frozenset[str]]],
        now: Callable[[], Moment],
    ) -> None:
        self._records = records
        self._hold_free = hold_free
        self._now = now

    def names(self, fleet: str) -> list[str]:
        """Return the clones of a fleet that have a record, by their indices."""
        pattern = re.compile(rf"{re.escape(fleet)}-([1-9][0-9]{{0,5}})")
        found = [match for name in self._records.names() if (match := pattern.fullmatch(name))]
        return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]

    def find(self, clone: str) -> Membership | None:
        """Return what is known of a clone of a pool; None if that is nothing."""
        try:
            data = json.loads(read_file(self._file(clone), trusted=False, limit=MAX_FILE))
            return _membership(data)
        except (InvalidRequest, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def held(self, clones: Collection[str]) -> frozenset[str]:
        """Return those of these clones that somebody uses now."""
        now = self._now()
        found = ((name, self.find(name)) for name in clones)
        return frozenset(name for name, own in found if own is not None and own.held(now))

    def take(
        self, clones: Sequence[str], count: int, claim: Claim, wanted: Callable[[Record], bool]
    ) -> tuple[tuple[Record, Membership], ...]:
        """Take so many of these clones, or none; returns them.

        :param wanted: whether a clone with this record will do.
        """
        now = self._now()
        free = [name for name in clones if (own := self.find(name)) and own.free(now)]
        if len(free) < count:
            return ()
        taken: list[tuple[Record, Membership]] = []
        with self._hold_free([_lock(name) for name in free]) as held:
            for name in free:
                if len(taken) < count and _lock(name) in held:
                    taken += self._taken(name, claim, wanted)
            if len(taken) < count:
                for record, own in taken:
                    self._write(record.labels.clone, attrs.evolve(own, claim=None))
                return ()
        return tuple(taken)

    def _taken(
        self, name: str, claim: Claim, wanted: Callable[[Record], bool]
    ) -> list[tuple[Record, Membership]]:
        """Take a clone whose lock is held, if it can be taken still."""
        own = self.find(name)
        if own is None or not own.free(self._now()):
            return []
        mine = attrs.evolve(own, claim=claim)
        if not self._write(name, mine):
            return []
        # Only now: gc reads leases first and claims then, so one of the two sees the other.
        record = self._records.find(name)
        if record is not None and wanted(record) and not self._ended(record):
            return [(record, mine)]
        self._write(name, own)
        return []

    def _ended(self, record: Record) -> bool:
        return record.lease is not None and record.lease.left(self._now()) <= 0

    def change(self, clone: str, holder: str, claim: Callable[[Claim], Claim | None]) -> bool:
        """Change a claim; returns False if it has ended, or isn't its holder's any more."""
        with self._locked(clone):
            own = self.find(clone)
            if own is None or own.claim is None or own.claim.holder != holder:
                return False
            if not own.held(self._now()):
                return False
            return self._write(clone, attrs.evolve(own, claim=claim(own.claim)))

    def close(self, clones: Collection[str]) -> list[str]:
        """See to it that nobody takes these clones; returns those that nobody uses."""
        closed = []
        for name in clones:
            with self._locked(name):
                own = self.find(name)
                if own is not None and own.held(self._now()):
                    continue
                if own is not None and own.claim is None:
                    ended = Claim.new(Lease(granted=self._now(), ttl=0), "")
                    self._write(name, attrs.evolve(own, claim=ended))
                closed.append(name)
        return closed

    def open(self, clone: str, address: str | None) -> None:
        """Let a clone that is as new be taken. Its claim has ended, or it never had one."""
        with self._locked(clone):
            self._write(clone, Membership(address=address, since=self._now()))

    @contextlib.contextmanager
    def _locked(self, clone: str) -> Iterator[None]:
        """Hold the lock of a clone's claim, which nobody holds for long."""
        while True:
            with self._hold_free([_lock(clone)]) as held:
                if held:
                    yield
                    return
            time.sleep(POLL)

    def _file(self, clone: str) -> Path:
        return self._records.folder / clone / FILE

    def _write(self, clone: str, own: Membership) -> bool:
        """Write a clone's file, with the lock held; False if the clone has been deleted.

        Not under a draft's usual name: those are swept by runs that hold another lock.
        """
        file = self._file(clone)
        draft = file.with_name(f"{FILE}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):
            with os.fdopen(os.open(draft, flags, 0o600), "w", encoding="ascii") as stream:
                json.dump(attrs.asdict(own), stream)
            draft.rename(file)
            return True
        return False


def _lock(clone: str) -> str:
    return f"claim/{clone}"


def _membership(data: dict[str, object]) -> Membership | None:
    since, address = read_moment(data["since"]), data["address"]
    match data["claim"]:
        case None:
            claim = None
        case {"holder": str(holder), "who": str(who), "lease": kept}:
            lease = read_lease(kept)
            if lease is None:
                return None
            claim = Claim(holder=holder, who=who, lease=lease)
        case _:
            return None
    if since is None or not (address is None or isinstance(address, str)):
        return None
    return Membership(address=address, since=since, claim=claim)
