"""How images get their names, and lose them.

An image is made under a draft's name, and gets its own when it is complete; it loses that before it
is removed. The pool's journal says what is under way, so what killed processes left is found.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import Conflict, HostCommandError, WrongState
from vmcloner_rbd.cluster import Cluster
from vmcloner_rbd.images import Header, Images
from vmcloner_rbd.journal import Entry, Journal
from vmcloner_rbd.records import ORIGIN

FORGOTTEN = 40.0
"""Seconds in which the cluster forgets a client that was killed: 30 by default."""


class Naming:
    """Names and removes the images of a pool. Thread-safe.

    :param place: the pool, and its namespace, as rbd(8) has it.
    """

    def __init__(self, cluster: Cluster, images: Images, journal: Journal, place: str) -> None:
        self._cluster = cluster
        self._images = images
        self._journal = journal
        self._place = place

    # --- drafts ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def drafted(self, entry: Entry) -> Iterator[None]:
        """Have a draft in the journal during the block, and :meth:`undone` if that fails."""
        with self._journal.written([entry]) as left, self.undone(entry, left):
            yield

    @contextlib.contextmanager
    def undone(self, entry: Entry, left: set[str]) -> Iterator[None]:
        """Remove a draft if the block fails; if that fails too, its entry stays for the sweep."""
        try:
            yield
        except BaseException:
            try:
                self.discard(entry)
            except OSError:
                left.add(entry.key)
            raise

    def named(self, entry: Entry) -> bool:
        """Give a draft its final name; returns whether that was free."""
        self._journal.check_held()
        with self._journal.alone(entry.name) as check_alone:
            if entry.name in self._images.names():
                return False
            check_alone()
            self._images.rename(entry.draft, entry.name)
        return True

    def publish(self, entry: Entry) -> None:
        """Give a draft its final name. :raises Conflict: that isn't free."""
        if not self.named(entry):
            name = entry.name
            raise Conflict(f"{name}: another process has made {name} in {self._cluster}")

    def discard(self, entry: Entry) -> None:
        """Remove a draft, unless it has its final name."""
        if self._has_its_name(entry):
            return
        with contextlib.suppress(FileNotFoundError):
            if entry.name.startswith(ORIGIN):
                with self._images.open(entry.draft, writable=True) as image:
                    image.unprotect()
                    image.remove_snapshot()
        self._images.remove(entry.draft)

    def _has_its_name(self, entry: Entry) -> bool:
        """Tell whether a draft has its final name; remove what an interrupted rename left of names.

        The name is then free for the next one, also while the draft can't be removed.
        """
        known = self._images.id_of(entry.draft) or self._images.names().get(entry.draft, "")
        names = self._images.names() if known else {}
        if known and entry.name not in names and self._images.id_of(entry.name) == known:
            self._images.forget_name(entry.name)
        if known and entry.draft not in names and known in names.values():
            self._images.forget_name(entry.draft)
            return True
        return False

    # --- removals -------------------------------------------------------------------------------

    def check_alone(self, name: str, header: Header) -> None:
        """Check that no snapshots, which are not ours, keep an image from being removed.

        :raises WrongState: some do.
        """
        if not header.has_snapshots:
            return
        with contextlib.suppress(FileNotFoundError), self._images.open(name) as image:
            if snapshots := image.snapshots():
                raise WrongState(
                    f"{self._cluster}: {name} has snapshots: {' '.join(snapshots)}",
                    hint=f"if they are not needed: rbd snap purge {self._place}/{name}",
                )

    def remove(self, entry: Entry, left: set[str]) -> bool:
        """Take an image's name away, and remove it; tell whether it had its name.

        :param left: gets the entry's key if the image is in the trash, and stays there for now.
        :raises WrongState: it is in use.
        """
        until = time.monotonic() + FORGOTTEN
        while True:
            with self._journal.alone(entry.name) as check_alone:
                if self._images.names().get(entry.name) != entry.id:
                    return False  # another process removed it
                users = self._users(entry.name)
                if not users:  # librbd moves an image that is only open
                    check_alone()
                    gone = self._trashed(entry.name)
                    break
            if time.monotonic() > until or not self._was_interrupted(entry):
                raise self._in_use(entry.name, users)
            pause(0.5)  # not alone: another process may remove it, and make a new one
        if not gone and self._images.names().get(entry.name) == entry.id:
            raise HostCommandError(
                f"{self._cluster}: {entry.name} can't be removed: Ceph finds only a part of it",
                hint=f"rbd info {self._place}/{entry.name}",
            )
        try:
            self._images.remove_trashed(entry.id)
        except OSError:  # the next run's sweep removes it
            left.add(entry.key)
        return gone

    def _was_interrupted(self, entry: Entry) -> bool:
        """Tell whether a process was killed while it removed the same image.

        The cluster knows such a client for a while yet. It is waited for: so the same command
        again removes the image.
        """
        return entry.id in {dead.id for dead in self._journal.dead()}

    def _trashed(self, name: str) -> bool:
        """Move an image to the trash; tell whether there was one.

        :raises WrongState: it is in use.
        """
        try:
            return self._images.move_to_trash(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise self._in_use(name, ["another client"]) from error

    def _in_use(self, name: str, users: Sequence[str]) -> WrongState:
        return WrongState(
            f"{self._cluster}: {name} is in use by {' '.join(users)}",
            hint="stop its clone first; a client that was killed is forgotten after 30 s",
        )

    # --- what killed processes left -------------------------------------------------------------

    def swept(self, entry: Entry) -> bool:
        """Remove what an entry names; tell whether nothing is left of it.

        A template's image that has its name yet is protected again.
        """
        try:
            if entry.draft:
                if self._has_its_name(entry):
                    return True
                if self._users(entry.draft):
                    return False  # the next sweep
                self.discard(entry)
            elif not self._images.remove_trashed(entry.id):
                if self._images.names().get(entry.name) != entry.id:
                    return True
                if self._users(entry.name):
                    return False  # the next sweep
                if entry.name.startswith(ORIGIN):
                    with self._images.open_known(entry.id, entry.name) as image:
                        image.protect()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False  # somebody looks at it: the next sweep
        return True

    def _users(self, name: str) -> Sequence[str]:
        """Return who has an image open, also who was killed half a minute ago.

        Where an image is removed or changed, librbd would wait for such a client's end.
        """
        with contextlib.suppress(FileNotFoundError), self._images.open(name) as image:
            return image.watchers()
        return ()
