"""``python -m vmcloner_pxe.batch``: resolve many guests at once, for the boot provider on KVM.

A program of its own, since it forks, which a process with threads must not. It reads one
:class:`Batch` as JSON from standard input and writes one answer a guest as JSON to standard output.

Kernels and initrds go into a store by their content, and from there as hard links into the guests'
folders: fifty guests of one kernel take its space once. A file of the store that has no other link
is in use by nobody, and is removed after a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cattrs

from vmcloner_core.errors import VmclonerError
from vmcloner_pxe import worker
from vmcloner_pxe.command import Stopped, cache, heed_signals
from vmcloner_pxe.errors import reason, shown
from vmcloner_pxe.fetching import MAX_SIZE, Fetcher
from vmcloner_pxe.libxl import join
from vmcloner_pxe.link import attached
from vmcloner_pxe.messages import Batch, Member, Result
from vmcloner_pxe.reach import Reach
from vmcloner_pxe.resolver import Guest, Resolver
from vmcloner_pxe.worker import Answer, Order

KEEP = 600.0
"""Seconds that a file of the store is kept without a guest."""


def run(batch: Batch) -> list[Result]:
    """Return what each guest boots; its files are in its folder afterwards."""
    ids = worker.uid_of("nobody")
    resolver = Resolver(
        fetcher=Fetcher(
            deadline=time.monotonic() + batch.timeout,
            reach=Reach(interface=batch.interface),
            cache=None if batch.dry_run else cache(None, ids),
        )
    )
    order = Order(fetch=not batch.dry_run)
    guests = [Guest(mac=m.mac, machine=uuid.UUID(m.machine)) for m in batch.guests]
    store = Store(Path(batch.store))
    results: dict[str, Result] = {}

    def take(answer: Answer) -> bool:
        member = batch.guests[answer.index]
        results[member.key] = _result(answer, member, store)
        return results[member.key].error is None

    try:
        with attached(batch.interface, len(guests), mode="auto") as link:
            worker.serve(resolver, order, guests, link, ids, take)
        store.sweep()
    except VmclonerError as error:
        missing = [m.key for m in batch.guests if m.key not in results]
        results.update({key: Result(key=key, error=str(error)) for key in missing})
    return list(results.values())


def _result(answer: Answer, member: Member, store: Store) -> Result:
    try:
        names = _linked(answer.files, member, store)
    except OSError as error:
        return Result(key=member.key, error=f"{member.folder}: {reason(error)}")
    except VmclonerError as error:
        return Result(key=member.key, error=str(error))
    return Result(
        key=member.key,
        error=answer.error,
        local=answer.local,
        address=answer.address,
        config=answer.config,
        label=answer.label,
        kernel=answer.kernel,
        initrds=answer.initrds,
        arguments=answer.arguments,
        files=names,
        warnings=answer.warnings,
    )


def _linked(files: tuple[BinaryIO, ...], member: Member, store: Store) -> tuple[str, ...]:
    """Put a kernel and its initrds, joined, into a guest's folder; return their names."""
    if not files or member.folder is None:
        return ()
    parts = {"kernel": files[:1], "initrd": files[1:]}
    names = tuple(name for name, part in parts.items() if part)
    for name in names:
        store.link(parts[name], Path(member.folder) / name)
    return names


class Store:
    """Files by their content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[tuple[int, int], ...], Path] = {}

    def link(self, files: Sequence[BinaryIO], target: Path) -> None:
        """Give open files, joined as initrds are, a name.

        :raises OSError: there is no room, or the name is taken.
        """
        states = [os.fstat(file.fileno()) for file in files]
        which = tuple((state.st_dev, state.st_ino) for state in states)
        for last in (False, False, True):
            try:
                if which not in self._known:
                    self._known[which] = self._kept(files)
                os.link(self._known[which], target)
                return
            except FileNotFoundError:  # another's sweep was quicker; or there is no such folder
                self._known.pop(which, None)
                if last:
                    raise

    def _kept(self, files: Sequence[BinaryIO]) -> Path:
        """Return the name of a file of that content in the store, made if need be."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd, name = tempfile.mkstemp(prefix=".draft-", dir=self._folder)
        draft = Path(name)
        try:
            with os.fdopen(fd, "w+b") as stream:
                join(files, stream, MAX_SIZE)
                stream.seek(0)
                path = self._folder / hashlib.file_digest(stream, "sha256").hexdigest()
                size = stream.seek(0, os.SEEK_END)
                if not _is_whole(path, size):
                    os.fchmod(stream.fileno(), 0o644)  # it came over the network: no secret
                    os.fsync(stream.fileno())  # a name that outlives a power cut has its content
                    draft.replace(path)
            os.utime(path)  # so that nobody sweeps it before it has its second name
            return path
        finally:
            draft.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what no guest has."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state = path.lstat()
                if state.st_nlink == 1 and time.time() - state.st_mtime > KEEP:
                    path.unlink()


def _is_whole(path: Path, size: int) -> bool:
    """Tell whether there is a file, and it wasn't cut by a power failure."""
    try:
        return path.lstat().st_size == size
    except FileNotFoundError:
        return False


def main() -> None:
    """Read a batch, write the answers."""
    heed_signals()
    try:
        batch = cattrs.structure(json.load(sys.stdin), Batch)
        answers = run(batch)
    except VmclonerError as error:
        sys.exit(shown(str(error)))
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
    json.dump(cattrs.unstructure(answers), sys.stdout)


if __name__ == "__main__":
    main()
