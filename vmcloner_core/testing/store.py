"""Conformance suite for stores of volumes: tests that each ``Store`` must pass.

A driver of a store needs the suite for storage as well: this one has what that one can't see, most
of all the order of a store's changes, by killing each call at each of its lines. Subclass it, with
a fixture that opens a store of a place that is empty at first::

    from vmcloner_core.testing.store import StoreConformance

    class TestShelf(StoreConformance):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: Shelf(tmp_path)

A place whose volumes do not lie in one folder, with all that belongs to them, overrides the methods
under "access to the place".
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from vmcloner_core.drivers.stores import Kept, Store
from vmcloner_core.errors import Conflict
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.suite import Suite, differs

MIB = 1024**2
SIZE = 3 * MIB + 512
NAME = "web-1-disk0"
_KILLED = 9
OpenStore = Callable[[], Store]


def known_of(index: int = 1, **more: object) -> dict[str, Any]:
    """Return what the record of a clone's volume says."""
    labels = make_labels(index=index).to_mapping()
    return {"labels": labels, "state": "0" * 32, "size": SIZE, "below": None, **more}


class StoreConformance(Suite):
    """The tests. See the module's docstring."""

    contract = Store
    made_by = "store"

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Return a function that opens the test's store, a new object at each call."""
        raise NotImplementedError("define a fixture open_store")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        """Return an open store."""
        return open_store()

    def wrong_with(self, made: object) -> str | None:
        """Return what is wrong with what the fixture opens, None for nothing."""
        return None if isinstance(made, Store) else f"open_store opens no Store: {type(made)}"

    # --- access to the place --------------------------------------------------------------------

    def put_foreign(self, path: Path) -> None:
        """Put a volume that isn't vmcloner's where a volume was that is removed."""
        path.write_bytes(b"foreign")

    def there(self, path: Path) -> bool:
        """Tell whether a volume is in the place, with or without a record."""
        return path.exists()

    def everything(self, path: Path) -> set[str]:
        """Return the names of all that is in the place, given the path of a volume."""
        return {each.name for each in path.parent.iterdir()}

    # --- volumes --------------------------------------------------------------------------------

    def test_capacity(self, store: Store) -> None:
        """Its space is known before it has volumes."""
        capacity = store.capacity()
        assert 0 < capacity.free <= capacity.total

    def test_a_volume_becomes_whole(self, store: Store, open_store: OpenStore) -> None:
        """A volume has its size in zeros, its record, and is whole once that was said."""
        assert store.find(NAME) is None
        path = store.make(NAME, known_of(), SIZE, None)
        assert path.is_absolute()
        assert differs(path.read_bytes(), bytes(SIZE)) is None
        for whole in (False, True):
            for each in (store, open_store()):
                assert each.find(NAME) == Kept(path=path, known=known_of(), whole=whole)
                assert list(each.names()) == [NAME]
            store.finish(NAME)

    def test_an_overlay_reads_from_what_is_below(self, store: Store) -> None:
        """An overlay is a qcow2 of the size that is asked for, on a raw image."""
        below = store.make("tiny.image", known_of(), SIZE, None)
        below.write_bytes(b"\xa5" * SIZE)
        store.finish("tiny.image")
        path = store.make(NAME, known_of(below=str(below)), 2 * SIZE, below)
        argv = ["qemu-img", "info", "--output=json", "-U", str(path)]
        told = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        assert (told["format"], told["virtual-size"]) == ("qcow2", 2 * SIZE)
        assert told["full-backing-filename"] == str(below)
        assert told["backing-filename-format"] == "raw"

    def test_a_record_says_what_it_was_given(self, store: Store, open_store: OpenStore) -> None:
        """Records keep a few KiB of JSON, whatever its characters are."""
        known = known_of(text="Ω\"\\\n\t'<&>\u2028" * 40, many=list(range(300)), none=None)
        store.make(NAME, known, SIZE, None)
        store.finish(NAME)
        kept = open_store().find(NAME)
        assert kept is not None
        assert kept.known == known

    def test_volumes_are_told_apart(self, store: Store) -> None:
        """Names that begin or end alike are other volumes; one goes without the others."""
        names = [NAME, f"{NAME}0", f"x{NAME}", "web-1-disk1", "tiny.image", "tiny"]
        paths = {}
        for number, name in enumerate(names):
            paths[name] = store.make(name, known_of(number + 1), SIZE, None)
            paths[name].write_bytes(bytes([number]) * SIZE)
            store.finish(name)
        assert sorted(store.names()) == sorted(names)
        store.remove(NAME)
        assert sorted(store.names()) == sorted(names[1:])
        for number, name in enumerate(names[1:], 1):
            kept = Kept(path=paths[name], known=known_of(number + 1), whole=True)
            assert store.find(name) == kept
            assert differs(paths[name].read_bytes(), bytes([number]) * SIZE) is None

    def test_remove(self, store: Store) -> None:
        """Nothing is left of what is removed; what isn't there is no error."""
        path = store.make("other", known_of(2), SIZE, None)
        before = self.everything(path)
        for finished in (False, True):
            path = store.make(NAME, known_of(), SIZE, None)
            if finished:
                store.finish(NAME)
            for _ in range(2):
                store.remove(NAME)
                assert store.find(NAME) is None
                assert list(store.names()) == ["other"]
                assert self.everything(path) == before

    def test_a_new_volume_has_nothing_of_the_old(self, store: Store) -> None:
        """The bytes and the mark of a volume do not come back with its name."""
        path = store.make(NAME, known_of(), SIZE, None)
        path.write_bytes(b"\xd7" * SIZE)
        store.finish(NAME)
        store.remove(NAME)
        path = store.make(NAME, known_of(2), SIZE, None)
        assert differs(path.read_bytes(), bytes(SIZE)) is None
        assert store.find(NAME) == Kept(path=path, known=known_of(2), whole=False)

    def test_a_foreign_volume_is_a_conflict(self, store: Store) -> None:
        """What has no record of vmcloner's is neither listed nor taken for a volume."""
        path = store.make(NAME, known_of(), SIZE, None)
        store.remove(NAME)
        self.put_foreign(path)
        assert NAME not in store.names()
        with pytest.raises(Conflict):
            store.find(NAME)
        assert self.there(path)

    def test_calls_of_several_threads(self, store: Store) -> None:
        """Threads that work on different volumes don't mix them up."""

        def one(number: int) -> Kept | None:
            name = f"web-{number}-disk0"
            for _ in range(3):
                store.make(name, known_of(number), SIZE, None)
                store.finish(name)
                kept = store.find(name)
                store.remove(name)
            return kept

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(one, range(1, 17)))
        assert [kept and kept.known for kept in found] == [known_of(n) for n in range(1, 17)]
        assert list(store.names()) == []

    # --- kills ----------------------------------------------------------------------------------

    def test_a_killed_make(self, open_store: OpenStore) -> None:
        """There is no volume without its record, nor a whole one; it can be made anew."""
        path, before = self.emptied(open_store())
        for _ in kills(open_store, lambda store: store.make(NAME, known_of(), SIZE, None)):
            store = open_store()
            kept = self.found(store, path)
            assert kept is None or (kept.known, kept.whole) == (known_of(), False)
            assert kept is not None or not self.there(path), "a volume is not found"
            self.check_new(store, path, before)

    def test_a_killed_finish(self, open_store: OpenStore) -> None:
        """A volume is whole or it isn't; its record stays, and it can be finished."""
        path, before = self.emptied(open_store())
        open_store().make(NAME, known_of(), SIZE, None)
        path.write_bytes(b"\xa5" * SIZE)
        for _ in kills(open_store, lambda store: store.finish(NAME)):
            store = open_store()
            for _ in range(2):
                kept = self.found(store, path)
                assert kept is not None
                assert (kept.path, kept.known) == (path, known_of())
                store.finish(NAME)
            assert kept is not None
            assert kept.whole, "finished twice, it isn't whole"
            assert differs(path.read_bytes(), b"\xa5" * SIZE) is None
            store.remove(NAME)
            store.make(NAME, known_of(), SIZE, None).write_bytes(b"\xa5" * SIZE)
        self.check_new(open_store(), path, before)

    def test_a_killed_remove(self, open_store: OpenStore) -> None:
        """As long as a volume is there it has its record; what is left of one isn't whole."""
        path, before = self.emptied(open_store())
        open_store().make(NAME, known_of(), SIZE, None)
        open_store().finish(NAME)
        for _ in kills(open_store, lambda store: store.remove(NAME)):
            store = open_store()
            kept = self.found(store, path)
            assert kept is not None or not self.there(path), "a volume is not found"
            assert kept is None or kept.known == known_of()
            assert kept is None or self.there(path) or not kept.whole, "what is gone is whole"
            self.check_new(store, path, before)
            store.make(NAME, known_of(), SIZE, None)
            store.finish(NAME)

    def emptied(self, store: Store) -> tuple[Path, set[str]]:
        """Return the path that a volume will have, and all that is in the place without it."""
        path = store.make(NAME, known_of(), SIZE, None)
        store.remove(NAME)
        return path, self.everything(path)

    def found(self, store: Store, path: Path) -> Kept | None:
        """Return what a killed call left; it is vmcloner's, and listed if it is found."""
        listed = list(store.names())
        try:
            kept = store.find(NAME)
        except Conflict:
            pytest.fail(f"what a killed call left counts as foreign: {self.everything(path)}")
        assert kept is None or NAME in listed, "a volume is not listed"
        return kept

    def check_new(self, store: Store, path: Path, before: set[str]) -> None:
        """Check that what a killed call left can be removed, and a new volume made."""
        store.remove(NAME)
        assert self.everything(path) == before, "something is left"
        store.make(NAME, known_of(), SIZE, None)
        store.finish(NAME)
        assert store.find(NAME) == Kept(path=path, known=known_of(), whole=True)
        store.remove(NAME)
        assert self.everything(path) == before


def kills(open_store: OpenStore, call: Callable[[Store], object]) -> Iterator[int]:
    """Make a call on a new store in processes that are killed; yield after each.

    The first is killed before the first line of the call, the next before the second line, and so
    on; the last is not killed. Lines are those of the package that the store's class is in.
    """
    package = type(open_store()).__module__.partition(".")[0]
    for at in itertools.count():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no other thread
            pid = os.fork()
        if pid == 0:
            _die_at(at, package, open_store, call)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, _KILLED), "the call failed"
        yield at
        if code == 0:
            break


def _die_at(at: int, package: str, open_store: OpenStore, call: Callable[[Store], object]) -> None:
    lines = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_globals.get("__name__", "").partition(".")[0] != package:
            return None
        if event in ("line", "return") and next(lines) == at:
            os._exit(_KILLED)
        return trace

    code = 1
    try:
        store = open_store()
        sys.settrace(trace)
        call(store)
        sys.settrace(None)
        code = 0
    finally:
        os._exit(code)
