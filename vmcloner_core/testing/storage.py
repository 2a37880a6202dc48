"""Conformance suite for storage backends: tests that every one of them must pass.

Subclass it, with a fixture that opens a driver on a pool that is empty at first::

    from vmcloner_core.testing.samples import make_context
    from vmcloner_core.testing.storage import StorageConformance

    class TestZfs(StorageConformance):
        @pytest.fixture
        def open_driver(self, tmp_path):
            return lambda: ZfsDriver(make_context(tmp_path), ZfsSettings(dataset="tank/test"))

A pool whose volumes are neither files nor block devices, or whose names cannot be taken by creating
a file, overrides the methods under "access to volumes". A driver that does not copy by
``vmcloner_core.copying`` overrides those under "observing copies".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest

from vmcloner_core import copying
from vmcloner_core.copying import Pace
from vmcloner_core.drivers import ImageFile, StorageDriver
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    CloneMode,
    CloneRequest,
    Copying,
    Origin,
    Outcome,
    Status,
    Volume,
)
from vmcloner_core.names import MAX_LABEL
from vmcloner_core.testing.capture import CaptureTests
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.snapshots import DiskSnapshotConformance
from vmcloner_core.testing.suite import Suite, by_key, differs

MIB = 1024**2
TIMEOUT = 240.0
STATE_ID = "0123456789abcdef" * 2
"""The id of a state folder: pools that show each state folder its own clones are tested with it."""
T = TypeVar("T")
OpenDriver = Callable[[], StorageDriver]

_HOLD = "import sys; f = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"


def make_image(path: Path, seed: int, size: int = 8 * MIB) -> ImageFile:
    """Write a raw image: data at its start, in its middle and at its end, with holes between."""
    marks = {0: 256 * 1024, size // 2: 64 * 1024, size - 4096: 4096}
    with path.open("wb") as stream:
        stream.truncate(size)
        for offset, length in marks.items():
            stream.seek(offset)
            stream.write(hashlib.shake_128(f"{seed}/{offset}".encode()).digest(length))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageFile(path=path, format="raw", size=size, digest=f"sha256:{digest}")


def no_progress(done: int, total: int) -> None:
    """Check the progress of an import."""
    assert done >= 0
    assert total == 0 or done <= total


def data_size(content: bytes) -> int:
    """Return the bytes of the 4 KiB blocks of ``content`` that are not zero."""
    return sum(4096 for at in range(0, len(content), 4096) if any(content[at : at + 4096]))


class Progressed(list[tuple[int, int]]):
    """A progress callback that records its calls."""

    def __call__(self, done: int, total: int) -> None:
        """Record a call."""
        self.append((done, total))

    def check(self) -> None:
        """Check that all calls name one total, and that the bytes done grow up to it."""
        assert self, "progress was never reported"
        assert {total for _done, total in self} == {self[-1][1]}, "the total changed"
        assert [done for done, _total in self] == sorted(done for done, _total in self)
        assert self[-1][0] == self[-1][1] > 0, "the last report is not of all bytes"


class StorageConformance(DiskSnapshotConformance, CaptureTests, Suite):
    """The tests. See the module's docstring."""

    contract = StorageDriver
    made_by, opens = "open_driver", True

    # --- fixtures -------------------------------------------------------------------------------

    @pytest.fixture
    def open_driver(self) -> OpenDriver:
        """Return a function that opens a driver of the test's pool, a new one at each call."""
        raise NotImplementedError("define a fixture open_driver")

    @pytest.fixture
    def driver(self, open_driver: OpenDriver) -> Iterator[StorageDriver]:
        """Yield an open driver."""
        driver = open_driver()
        yield driver
        driver.close()

    @pytest.fixture
    def image(self, tmp_path: Path) -> ImageFile:
        """Return the image that clones are made from."""
        return make_image(tmp_path / "image.raw", seed=1)

    @pytest.fixture
    def other_image(self, tmp_path: Path) -> ImageFile:
        """Return an image of the same size with other content."""
        return make_image(tmp_path / "other.raw", seed=2)

    @pytest.fixture
    def origin(self, driver: StorageDriver, image: ImageFile) -> Origin:
        """Import the image as template ``tiny``."""
        return driver.import_image("tiny", image, no_progress).unwrap()

    @pytest.fixture(params=list(CloneMode), ids=lambda mode: mode.value)
    def mode(self, request: pytest.FixtureRequest, driver: StorageDriver) -> CloneMode:
        """Run the test in each clone mode that the backend supports."""
        mode: CloneMode = request.param
        if mode not in driver.modes:
            pytest.skip(f"the backend declares that it has no {mode.value} clones")
        return mode

    # --- access to volumes ----------------------------------------------------------------------

    def read(self, volume: Volume) -> bytes:
        """Return all bytes of an active volume, as a guest would see them."""
        if volume.format == "raw":
            with volume.path.open("rb") as stream:
                return stream.read()
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw"
            _run("qemu-img", "convert", "-f", volume.format, "-O", "raw", volume.path, raw)
            return raw.read_bytes()

    def write(self, volume: Volume, offset: int, data: bytes) -> None:
        """Write to an active volume, as a guest would."""
        if volume.format == "raw":
            with volume.path.open("r+b") as stream:
                stream.seek(offset)
                stream.write(data)
            return
        with tempfile.NamedTemporaryFile() as source:
            source.write(data)
            source.flush()
            command = f"write -s {source.name} {offset} {len(data)}"
            _run("qemu-io", "-f", volume.format, "-c", command, volume.path)

    def put_foreign(self, volume: Volume) -> None:
        """Create a volume without our labels under the name of a deleted one."""
        assert volume.kind == "file", "override put_foreign for a pool of block devices"
        volume.path.write_bytes(b"foreign")

    def check_foreign(self, volume: Volume) -> None:
        """Check that the volume made by :meth:`put_foreign` is unchanged."""
        assert volume.path.read_bytes() == b"foreign"

    @contextlib.contextmanager
    def busy(self, volume: Volume) -> Iterator[int]:
        """Keep an active volume open in another process; yields its process id."""
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(volume.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"open\n"
                yield process.pid
            finally:
                process.stdin.close()
                process.wait(TIMEOUT)

    # --- observing copies -----------------------------------------------------------------------

    @contextlib.contextmanager
    def corrupting(self) -> Iterator[None]:
        """Change a byte of everything that is copied in the block, before it is verified."""

        def flush(fd: int) -> None:
            [byte] = os.pread(fd, 1, 0)
            os.pwrite(fd, bytes([byte ^ 0xFF]), 0)
            real(fd)

        real = copying.flush
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, "flush", flush)
            yield

    @contextlib.contextmanager
    def paced(self) -> Iterator[list[tuple[int | None, int]]]:
        """Yield (bandwidth, bytes) of each time that a copy waits for its bandwidth."""
        calls: list[tuple[int | None, int]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pace, "__call__", lambda pace, n: calls.append((pace.bandwidth, n)))
            yield calls

    # --- helpers of the tests -------------------------------------------------------------------

    @contextlib.contextmanager
    def active(self, driver: StorageDriver, volume: Volume) -> Iterator[None]:
        """Activate a volume during the block."""
        for outcome in driver.activate([volume]):
            assert outcome.ok, outcome.error
        try:
            yield
        finally:
            for outcome in driver.deactivate([volume]):
                assert outcome.ok, outcome.error

    def content(self, driver: StorageDriver, volume: Volume) -> bytes:
        """Return the bytes of a volume."""
        with self.active(driver, volume):
            return self.read(volume)

    def requests(
        self, origin: Origin, count: int, mode: CloneMode, *, fleet: str = "web", first: int = 1
    ) -> list[CloneRequest]:
        """Return requests for clones FLEET-first … of an origin."""
        return [
            CloneRequest(
                labels=make_labels(fleet, index, template=origin.template), origin=origin, mode=mode
            )
            for index in range(first, first + count)
        ]

    def make(self, driver: StorageDriver, requests: Sequence[CloneRequest]) -> list[Volume]:
        """Clone, and return the volumes in the order of the requests."""
        outcomes = by_key(driver.clone(requests))
        return [outcomes[request.volume_name].unwrap() for request in requests]

    def blank(self, size: int, *, disk: int = 1, index: int = 1, head: bytes = b"") -> CloneRequest:
        """Return a request for a blank disk of a clone."""
        return CloneRequest(labels=make_labels(index=index), disk=disk, size=size, head=head)

    def names(self, driver: StorageDriver) -> list[str]:
        """Return the names of the pool's volumes, sorted."""
        return sorted(volume.name for volume in driver.volumes())

    # --- host -----------------------------------------------------------------------------------

    def test_probe_is_content_and_changes_nothing(self, driver: StorageDriver) -> None:
        """The checks pass on a host that runs these tests, and change nothing."""
        failed = [check for check in driver.probe() if check.status is Status.FAILED]
        assert failed == []
        assert driver.origins() == ()
        assert driver.volumes() == ()

    def test_capacity_is_of_the_pool(self, driver: StorageDriver) -> None:
        """Capacity is known before the pool holds anything."""
        capacity = driver.capacity()
        assert 0 < capacity.free <= capacity.total

    def test_need_grows_with_the_count(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """The need is proportional to the count, and at least the data of a full copy."""
        [request] = self.requests(origin, 1, mode)
        for each in (request, self.blank(4 * MIB)):
            assert driver.need(each, 0) == 0
            assert driver.need(each, 20) == 2 * driver.need(each, 10)
        if mode is CloneMode.FULL:
            assert driver.need(request, 1) >= origin.allocated

    # --- origins --------------------------------------------------------------------------------

    def test_import_is_found_again(
        self, driver: StorageDriver, open_driver: OpenDriver, image: ImageFile, origin: Origin
    ) -> None:
        """Every driver of the pool finds an origin with its template, digest and size."""
        assert (origin.template, origin.digest, origin.size) == ("tiny", image.digest, image.size)
        again = open_driver()
        assert driver.origins() == again.origins() == (origin,)
        again.close()

    def test_import_twice_changes_nothing(
        self, driver: StorageDriver, image: ImageFile, origin: Origin
    ) -> None:
        """Importing the same image again changes nothing."""
        outcome = driver.import_image("tiny", image, no_progress)
        assert not outcome.changed
        assert outcome.unwrap() == origin

    def test_import_of_a_changed_image_replaces(
        self, driver: StorageDriver, origin: Origin, other_image: ImageFile
    ) -> None:
        """An image with another digest replaces one without clones."""
        outcome = driver.import_image("tiny", other_image, no_progress)
        assert outcome.changed
        replaced = outcome.unwrap()
        assert driver.origins() == (replaced,)
        assert replaced.digest == other_image.digest != origin.digest
        [volume] = self.make(driver, self.requests(replaced, 1, driver.default_mode))
        assert differs(self.content(driver, volume), other_image.path.read_bytes()) is None

    def test_clones_outlive_a_changed_image(
        self,
        driver: StorageDriver,
        origin: Origin,
        image: ImageFile,
        other_image: ImageFile,
        mode: CloneMode,
    ) -> None:
        """Replacing an origin either is refused or does not change its clones."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        with contextlib.suppress(WrongState):
            driver.import_image("tiny", other_image, no_progress).unwrap()
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_clones_outlive_their_origin(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """Deleting an origin either is refused or does not change its clones."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        with contextlib.suppress(WrongState):
            _check(driver.delete_origin("tiny"))
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_delete_origin(self, driver: StorageDriver, origin: Origin) -> None:
        """Deleting an origin that does not exist is a success without a change."""
        self.make(driver, self.requests(origin, 2, driver.default_mode))
        for outcome in driver.delete(driver.volumes()):
            assert outcome.ok, outcome.error
        first = driver.delete_origin("tiny")
        assert first.ok, first.error
        assert first.changed
        assert driver.origins() == ()
        assert not driver.delete_origin("tiny").changed

    def test_origins_are_told_apart(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, other_image: ImageFile
    ) -> None:
        """Templates have images of their own: one is deleted without the other."""
        other = driver.import_image("other", other_image, no_progress).unwrap()
        assert sorted(o.template for o in driver.origins()) == ["other", "tiny"]
        [volume] = self.make(driver, self.requests(origin, 1, driver.default_mode))
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None
        _check(driver.delete_origin("other"))
        [left] = driver.origins()  # what it takes may differ: a ramfs keeps holes that are read
        assert attrs.evolve(left, allocated=origin.allocated) == origin
        assert other.digest != origin.digest
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_clone_of_a_missing_origin(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """A clone of an origin that was deleted fails and leaves nothing."""
        _check(driver.delete_origin("tiny"))
        [outcome] = driver.clone(self.requests(origin, 1, mode))
        assert isinstance(outcome.error, VmclonerError)
        assert self.names(driver) == []

    # --- clones ---------------------------------------------------------------------------------

    def test_clones_hold_the_origins_bytes(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A new clone has its template's bytes, and its labels."""
        requests = self.requests(origin, 3, mode)
        outcomes = by_key(driver.clone(requests))
        assert sorted(outcomes) == ["web-1-disk0", "web-2-disk0", "web-3-disk0"]
        for request in requests:
            outcome = outcomes[request.volume_name]
            volume = outcome.unwrap()
            assert outcome.changed
            assert volume.labels == request.labels
            assert volume.name == request.volume_name
            assert volume.path.is_absolute()
            assert volume.size == image.size
            assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_clones_are_isolated(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """Writes to a clone do not appear in other clones or in later ones."""
        first, second = self.make(driver, self.requests(origin, 2, mode))
        marks = {first.name: b"\xa1" * 4096, second.name: b"\xb2" * 4096}
        for volume in (first, second):
            with self.active(driver, volume):
                self.write(volume, 0, marks[volume.name])
                self.write(volume, image.size // 4, marks[volume.name])  # where the image is empty
        [third] = self.make(driver, self.requests(origin, 1, mode, first=3))
        pristine = image.path.read_bytes()
        assert differs(self.content(driver, third), pristine) is None
        for volume in (first, second):
            mark, at = marks[volume.name], image.size // 4
            expected = mark + pristine[4096:at] + mark + pristine[at + 4096 :]
            assert differs(self.content(driver, volume), expected) is None

    def test_same_clone_twice(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """The same request again returns the existing clone with its labels and bytes."""
        [request] = self.requests(origin, 1, mode)
        [volume] = self.make(driver, [request])
        with self.active(driver, volume):
            self.write(volume, 0, b"\xc3" * 4096)
        later = attrs.evolve(request.labels, run="20260202-000000-ffff", owner="another")
        [outcome] = driver.clone([attrs.evolve(request, labels=later)])
        assert outcome.unwrap() == volume
        assert not outcome.changed
        assert differs(self.content(driver, volume)[:4096], b"\xc3" * 4096) is None

    def test_same_name_from_another_template(
        self,
        driver: StorageDriver,
        origin: Origin,
        image: ImageFile,
        other_image: ImageFile,
        mode: CloneMode,
    ) -> None:
        """A clone's name belongs to its template."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        other = driver.import_image("other", other_image, no_progress).unwrap()
        [outcome] = driver.clone(self.requests(other, 1, mode))
        assert isinstance(outcome.error, Conflict)
        assert driver.volumes() == (volume,)
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_foreign_volume_is_never_touched(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """A volume without our labels is not listed, not taken as a clone, and not deleted."""
        requests = self.requests(origin, 1, mode)
        [volume] = self.make(driver, requests)
        for outcome in driver.delete([volume]):
            assert outcome.ok, outcome.error
        assert list(driver.unlabelled([volume.name])) == []
        self.put_foreign(volume)
        assert driver.volumes() == ()
        if type(driver).unlabelled is not StorageDriver.unlabelled:  # it is optional
            assert list(driver.unlabelled([volume.name, f"{volume.name}9"])) == [volume.name]
        [made] = driver.clone(requests)
        assert isinstance(made.error, Conflict)
        [deleted] = driver.delete([volume])
        assert isinstance(deleted.error, Conflict)
        self.check_foreign(volume)

    def test_longest_name(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """A clone's name may have as many characters as a DNS label."""
        requests = self.requests(origin, 1, mode, fleet="x" * (MAX_LABEL - 2))
        [volume] = self.make(driver, requests)
        assert len(volume.labels.clone) == MAX_LABEL
        assert driver.volumes() == (volume,)
        [outcome] = driver.delete([volume])
        assert outcome.ok, outcome.error
        assert driver.volumes() == ()

    def test_larger_disk(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A disk may be larger than its image: zeros follow."""
        [request] = self.requests(origin, 1, mode)
        [volume] = self.make(driver, [attrs.evolve(request, size=image.size + 4 * MIB)])
        assert volume.size >= image.size + 4 * MIB
        content = self.content(driver, volume)
        assert len(content) == volume.size
        assert differs(content, image.path.read_bytes() + bytes(volume.size - image.size)) is None
        assert driver.volumes() == (volume,)

    def test_failure_in_mid_batch(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A disk smaller than its image fails; the others of its batch are made."""
        requests = self.requests(origin, 5, mode)
        requests[2] = attrs.evolve(requests[2], size=image.size - 4096)
        outcomes = by_key(driver.clone(requests))
        assert len(outcomes) == 5
        assert isinstance(outcomes["web-3-disk0"].error, InvalidRequest)
        assert self.names(driver) == [f"web-{index}-disk0" for index in (1, 2, 4, 5)]
        [again] = driver.clone(self.requests(origin, 1, mode, first=3))
        assert again.changed
        assert differs(self.content(driver, again.unwrap()), image.path.read_bytes()) is None

    def test_labels_survive(
        self, driver: StorageDriver, open_driver: OpenDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """Another driver of the pool finds the same volumes with all of their labels."""
        requests = self.requests(origin, 3, mode)
        every = attrs.evolve(
            requests[0].labels,
            expires="2027-01-01T00:00:00Z",
            owner="Zoë Ω",
            boot="pygrub",
            state=STATE_ID,
            lab="trial",
        )
        requests[0] = attrs.evolve(requests[0], labels=every)
        made = self.make(driver, requests)
        again = open_driver()
        assert sorted(again.volumes(), key=lambda v: v.name) == made
        assert [v.labels for v in made] == [request.labels for request in requests]
        again.close()

    def test_concurrent_batches(
        self, driver: StorageDriver, open_driver: OpenDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """Two drivers run overlapping batches at once: each clone is made by one of them."""
        results = _at_once(
            [driver, open_driver()],
            lambda each: by_key(each.clone(self.requests(origin, 10, mode))),
        )
        names = sorted(f"web-{index}-disk0" for index in range(1, 11))
        for result in results:
            assert sorted(result) == names
            assert [o.error for o in result.values()] == [None] * 10
        assert self.names(driver) == names
        for name in names:
            assert [result[name].changed for result in results].count(True) == 1

    # --- copies ---------------------------------------------------------------------------------

    @pytest.fixture
    def copier(self, driver: StorageDriver) -> StorageDriver:
        """Return the driver; skip the test if it declares that it copies nothing."""
        if not driver.copies:
            pytest.skip("the backend declares that it copies no bytes by itself")
        return driver

    def copies(self, origin: Origin, driver: StorageDriver, **options: Any) -> list[CloneRequest]:
        """Return requests for two full clones; skip the test if the pool makes none."""
        if CloneMode.FULL not in driver.modes:
            pytest.skip("the backend declares that it has no full clones")
        requests = self.requests(origin, 2, CloneMode.FULL)
        return [attrs.evolve(request, copying=Copying(**options)) for request in requests]

    def test_verified_copies_are_checked(
        self, copier: StorageDriver, origin: Origin, image: ImageFile
    ) -> None:
        """A wrong byte fails a verified copy, and leaves no clone; the request can be repeated."""
        requests = self.copies(origin, copier, verify=True)
        with self.corrupting():
            outcomes = list(copier.clone(requests))
        assert len(outcomes) == 2
        assert all(isinstance(o.error, VmclonerError) for o in outcomes), "verified wrong bytes"
        assert not any(volume.complete for volume in copier.volumes())
        for volume in self.make(copier, requests):
            assert volume.complete
            assert differs(self.content(copier, volume), image.path.read_bytes()) is None

    def test_verified_resets_are_checked(self, copier: StorageDriver, origin: Origin) -> None:
        """A wrong byte fails a verified reset of a full clone."""
        requests = self.copies(origin, copier, verify=True)
        self.make(copier, requests)
        with self.corrupting():
            outcomes = list(copier.reset(requests))
        assert all(isinstance(o.error, VmclonerError) for o in outcomes), "verified wrong bytes"

    def test_verified_imports_are_checked(self, copier: StorageDriver, image: ImageFile) -> None:
        """A wrong byte fails a verified import, which leaves no origin and can be repeated."""
        verified = Copying(verify=True)
        with self.corrupting(), contextlib.suppress(VmclonerError):
            outcome = copier.import_image("tiny", image, no_progress, verified)
            assert isinstance(outcome.error, VmclonerError), "verified wrong bytes"
        assert copier.origins() == ()
        origin = copier.import_image("tiny", image, no_progress, verified).unwrap()
        [volume] = self.make(copier, self.requests(origin, 1, copier.default_mode))
        assert differs(self.content(copier, volume), image.path.read_bytes()) is None

    def test_copies_keep_to_a_bandwidth(
        self, copier: StorageDriver, origin: Origin, image: ImageFile
    ) -> None:
        """All copies of one call share the bandwidth: it counts the bytes of each."""
        requests = self.copies(origin, copier, bandwidth=123456)
        with self.paced() as calls:
            self.make(copier, requests)
        assert {bandwidth for bandwidth, _count in calls} == {123456}
        assert sum(n for _bandwidth, n in calls) >= 2 * data_size(image.path.read_bytes())

    def test_imports_keep_to_a_bandwidth(self, copier: StorageDriver, image: ImageFile) -> None:
        """The bandwidth counts what an import writes."""
        with self.paced() as calls:
            copier.import_image("tiny", image, no_progress, Copying(bandwidth=123456)).unwrap()
        assert {bandwidth for bandwidth, _count in calls} == {123456}
        assert sum(n for _bandwidth, n in calls) >= data_size(image.path.read_bytes())

    def test_progress_of_copies(self, copier: StorageDriver, origin: Origin) -> None:
        """Each copy reports its own bytes, up to its total."""
        requests = self.copies(origin, copier)
        told = {request.volume_name: Progressed() for request in requests}
        outcomes = copier.clone(requests, lambda name, *bytes_: told[name](*bytes_))
        assert all(outcome.ok for outcome in outcomes)
        for progress in told.values():
            progress.check()

    def test_progress_of_imports(self, copier: StorageDriver, image: ImageFile) -> None:
        """An import reports its bytes, up to its total."""
        progress = Progressed()
        copier.import_image("tiny", image, progress).unwrap()
        progress.check()

    # --- reset ----------------------------------------------------------------------------------

    def test_reset(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A reset restores the template's bytes, keeps labels, and changes no other volume."""
        requests = self.requests(origin, 3, mode)
        volumes = self.make(driver, requests)
        for volume in volumes:
            with self.active(driver, volume):
                self.write(volume, 4 * MIB, b"\xd7" * 8192)
        later = [
            attrs.evolve(r, labels=attrs.evolve(r.labels, run="another-run")) for r in requests[:2]
        ]
        outcomes = by_key(driver.reset(later))
        assert [outcomes[v.name].unwrap() for v in volumes[:2]] == volumes[:2]
        assert all(outcome.changed for outcome in outcomes.values())
        assert sorted(driver.volumes(), key=lambda v: v.name) == volumes
        for volume in volumes[:2]:
            assert differs(self.content(driver, volume), image.path.read_bytes()) is None
        assert self.content(driver, volumes[2]) != image.path.read_bytes()

    def test_reset_makes_what_is_missing(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A missing volume is made, as after a crash between a deletion and a clone."""
        [request] = self.requests(origin, 1, mode)
        [volume] = [outcome.unwrap() for outcome in driver.reset([request])]
        assert driver.volumes() == (volume,)
        assert differs(self.content(driver, volume), image.path.read_bytes()) is None

    def test_reset_of_a_larger_disk(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """After a reset, zeros follow the image again."""
        [request] = self.requests(origin, 1, mode)
        request = attrs.evolve(request, size=2 * origin.size)
        [volume] = self.make(driver, [request])
        with self.active(driver, volume):
            self.write(volume, origin.size + MIB, b"\xd7" * 8192)
        [again] = [outcome.unwrap() for outcome in driver.reset([request])]
        assert again == volume
        content = self.content(driver, again)
        assert differs(content[: origin.size], image.path.read_bytes()) is None
        assert differs(content[origin.size :], bytes(volume.size - origin.size)) is None

    def test_reset_of_blank_disks(self, driver: StorageDriver) -> None:
        """After a reset, blank disks hold their head and zeros."""
        requests = [self.blank(4 * MIB), self.blank(4 * MIB, disk=2, head=b"SWAP" * 1024)]
        volumes = self.make(driver, requests)
        for volume in volumes:
            with self.active(driver, volume):
                self.write(volume, 0, b"\xd7" * volume.size)
        again = [outcome.unwrap() for outcome in driver.reset(requests)]
        assert sorted(again, key=lambda v: v.name) == volumes
        for volume, request in zip(volumes, requests, strict=True):
            rest = bytes(volume.size - len(request.head))
            assert differs(self.content(driver, volume), request.head + rest) is None

    def test_reset_of_another_clone(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """The name of another template's clone is a Conflict; its volume does not change."""
        [request] = self.requests(origin, 1, mode)
        [volume] = self.make(driver, [request])
        with self.active(driver, volume):
            self.write(volume, 0, b"\xd7" * 4096)
        before = self.content(driver, volume)
        foreign = attrs.evolve(request, labels=attrs.evolve(request.labels, template="other"))
        [outcome] = driver.reset([foreign])
        assert isinstance(outcome.error, Conflict)
        assert driver.volumes() == (volume,)
        assert differs(self.content(driver, volume), before) is None

    def test_reset_busy(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """A volume in use is not changed; the others of its batch are reset."""
        requests = self.requests(origin, 3, mode)
        volumes = self.make(driver, requests)
        with self.active(driver, volumes[1]):
            self.write(volumes[1], 0, b"\xd7" * 4096)
            before = self.read(volumes[1])
            with self.busy(volumes[1]):
                outcomes = by_key(driver.reset(requests))
            assert self.read(volumes[1]) == before
        assert isinstance(outcomes["web-2-disk0"].error, WrongState)
        assert outcomes["web-1-disk0"].ok
        assert outcomes["web-3-disk0"].ok
        assert len(driver.volumes()) == 3

    # --- larger disks ---------------------------------------------------------------------------

    def grown(
        self, driver: StorageDriver, volumes: Sequence[Volume], size: int
    ) -> dict[str, Outcome[Volume]]:
        """Return what growing volumes yields; skips the test if the pool can't do it."""
        outcomes = by_key(driver.grow(volumes, size))
        if any(isinstance(outcome.error, InvalidRequest) for outcome in outcomes.values()):
            pytest.skip("the backend declares that it can't make disks larger")
        return outcomes

    def test_grow(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """Volumes become larger, keep what is on them, and end with zeros; twice is as once."""
        volumes = self.make(driver, self.requests(origin, 3, mode))
        with self.active(driver, volumes[0]):
            self.write(volumes[0], 4096, b"guest")
        before = [self.content(driver, volume) for volume in volumes]
        asked = origin.size + 3 * MIB + 5
        size = driver.whole(asked)
        assert driver.whole(size) == size >= asked
        outcomes = self.grown(driver, volumes[:2], asked)
        assert [o.changed for o in outcomes.values()] == [True, True]
        assert {o.unwrap().size for o in outcomes.values()} == {size}
        there = {volume.name: volume for volume in driver.volumes()}
        after = [there[volume.name] for volume in volumes]
        assert [volume.size for volume in after] == [size, size, volumes[2].size]
        for volume, old in zip(after[:2], before, strict=False):
            content = self.content(driver, volume)
            assert differs(content[: len(old)], old) is None
            assert len(content) == size
            assert not any(content[len(old) :])
        for wanted in (asked, size, MIB):
            again = self.grown(driver, after[:2], wanted)
            assert [o.changed for o in again.values()] == [False, False]
            assert {o.unwrap().size for o in again.values()} == {size}

    def test_growing_shows_nothing_of_the_deleted(self, driver: StorageDriver) -> None:
        """The new part of a volume has no bytes of volumes that were deleted."""
        kept, doomed = self.make(driver, [self.blank(4 * MIB), self.blank(8 * MIB, index=2)])
        with self.active(driver, doomed):
            self.write(doomed, 0, b"\xff" * (8 * MIB))
        assert all(outcome.ok for outcome in driver.delete([doomed]))
        grown = self.grown(driver, [kept], 12 * MIB)[kept.name].unwrap()
        assert not any(self.content(driver, grown))

    def test_grow_of_what_is_not_the_clones(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """A missing volume is NotFound, another clone's a Conflict; others of the batch grow."""
        mine, other, gone = self.make(driver, self.requests(origin, 3, mode))
        assert all(outcome.ok for outcome in driver.delete([gone]))
        strangers = attrs.evolve(other, labels=attrs.evolve(other.labels, template="another"))
        outcomes = self.grown(driver, [gone, strangers, mine], 12 * MIB)
        assert isinstance(outcomes[gone.name].error, NotFound)
        assert isinstance(outcomes[other.name].error, Conflict)
        assert outcomes[mine.name].unwrap().size == 12 * MIB
        assert {v.name: v.size for v in driver.volumes()}[other.name] == other.size

    # --- other state folders --------------------------------------------------------------------

    def test_hand_over(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """Volumes get another state folder, and keep the rest; twice is as once; others stay."""
        if not driver.hands_over:
            pytest.skip("the backend declares that it hands no volumes over")
        mine, strange, gone, kept = self.make(driver, self.requests(origin, 4, mode))
        before, heir = self.content(driver, mine), "0123456789abcdef" * 2
        assert all(outcome.ok for outcome in driver.delete([gone]))
        of_another = attrs.evolve(strange, labels=attrs.evolve(strange.labels, template="another"))
        for changed in (True, False):
            outcomes = by_key(driver.hand_over([mine, of_another, gone], heir))
            assert (outcomes[mine.name].error, outcomes[mine.name].changed) == (None, changed)
            assert isinstance(outcomes[strange.name].error, Conflict)
            assert isinstance(outcomes[gone.name].error, NotFound)
        there = {volume.name: volume for volume in driver.volumes()}
        assert (there[strange.name], there[kept.name]) == (strange, kept)
        if mine.name in there:  # a pool that is shared shows each host its own only
            labels = attrs.evolve(mine.labels, state=heir)
            assert there[mine.name] == attrs.evolve(mine, labels=labels)
        assert differs(self.content(driver, mine), before) is None

    # --- clones with several disks --------------------------------------------------------------

    def test_blank_disks(self, driver: StorageDriver) -> None:
        """A blank disk holds its head and zeros; the pool needs no template."""
        head = b"SWAP" * 1024
        requests = [self.blank(4 * MIB), self.blank(8 * MIB, disk=2, head=head)]
        empty, headed = self.make(driver, requests)
        assert (empty.name, headed.name) == ("web-1-disk1", "web-1-disk2")
        assert (empty.disk, headed.disk) == (1, 2)
        assert (empty.format, headed.format) == ("raw", "raw")
        assert empty.size >= 4 * MIB
        assert headed.size >= 8 * MIB
        assert differs(self.content(driver, empty), bytes(empty.size)) is None
        assert differs(self.content(driver, headed), head + bytes(headed.size - len(head))) is None
        assert sorted(driver.volumes(), key=lambda v: v.name) == [empty, headed]

    def test_blank_disks_hold_nothing_of_the_deleted(self, driver: StorageDriver) -> None:
        """The bytes of a deleted disk do not appear in the next one."""
        [request] = [self.blank(4 * MIB)]
        for _ in range(2):
            [volume] = self.make(driver, [request])
            assert differs(self.content(driver, volume), bytes(volume.size)) is None
            with self.active(driver, volume):
                self.write(volume, 0, b"\xd4" * volume.size)
            for outcome in driver.delete([volume]):
                assert outcome.ok, outcome.error

    def test_disks_of_one_clone(
        self, driver: StorageDriver, origin: Origin, image: ImageFile, mode: CloneMode
    ) -> None:
        """A clone's disks are made in one call and deleted one by one."""
        requests = [
            *self.requests(origin, 2, mode),
            *(self.blank(4 * MIB, disk=disk, index=i) for i in (1, 2) for disk in (1, 2)),
        ]
        first, _other, second, third, *_rest = volumes = self.make(driver, requests)
        assert [volume.disk for volume in (first, second, third)] == [0, 1, 2]
        assert sorted(driver.volumes(), key=lambda v: v.name) == sorted(
            volumes, key=lambda v: v.name
        )
        with self.active(driver, second):
            self.write(second, 0, b"\xe5" * 4096)
        assert differs(self.content(driver, first), image.path.read_bytes()) is None
        assert differs(self.content(driver, third), bytes(third.size)) is None
        [outcome] = driver.delete([second])
        assert outcome.key == second.name
        assert outcome.changed
        assert second.name not in self.names(driver)
        assert len(self.names(driver)) == 5

    def test_a_clone_that_lacks_a_disk(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """The same request makes the missing disk and does not change the existing one."""
        requests = [*self.requests(origin, 1, mode), self.blank(4 * MIB)]
        [first] = self.make(driver, requests[:1])
        outcomes = by_key(driver.clone(requests))
        assert outcomes[first.name].unwrap() == first
        assert [outcomes[r.volume_name].changed for r in requests] == [False, True]

    def test_a_disk_of_another_clone(self, driver: StorageDriver) -> None:
        """A blank disk belongs to its clone's template as well."""
        [volume] = self.make(driver, [self.blank(4 * MIB)])
        other = attrs.evolve(
            self.blank(4 * MIB), labels=attrs.evolve(volume.labels, template="other")
        )
        [outcome] = driver.clone([other])
        assert isinstance(outcome.error, Conflict)
        assert driver.volumes() == (volume,)

    def test_activation_is_by_volume(self, driver: StorageDriver, origin: Origin) -> None:
        """Activation and deactivation are idempotent."""
        requests = [*self.requests(origin, 1, driver.default_mode), self.blank(4 * MIB)]
        volumes = self.make(driver, requests)
        for switch in (driver.activate, driver.activate, driver.deactivate, driver.deactivate):
            outcomes = list(switch(volumes))
            assert sorted(o.key for o in outcomes) == sorted(v.name for v in volumes)
            assert [o.error for o in outcomes] == [None, None]

    def test_empty_batches(self, driver: StorageDriver, origin: Origin) -> None:
        """Empty batches yield nothing, and do nothing to the volumes that are there."""
        [volume] = self.make(driver, self.requests(origin, 1, driver.default_mode))
        for method in (driver.clone, driver.reset, driver.delete, driver.activate):
            assert not list(method([]))
        assert not list(driver.deactivate([]))
        assert not list(driver.grow([], 2 * volume.size))
        assert driver.volumes() == (volume,)
        assert driver.origins() == (origin,)

    # --- deletion -------------------------------------------------------------------------------

    def test_delete_twice(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """Deleting a volume that does not exist is a success without a change."""
        volumes = self.make(driver, self.requests(origin, 3, mode))
        first = list(driver.delete(volumes[:2]))
        assert [(o.ok, o.changed) for o in first] == [(True, True)] * 2
        assert self.names(driver) == ["web-3-disk0"]
        again = by_key(driver.delete(volumes))
        assert all(o.ok for o in again.values())
        assert [again[f"web-{n}-disk0"].changed for n in (1, 2, 3)] == [False, False, True]
        assert driver.volumes() == ()

    def test_concurrent_deletes(
        self, driver: StorageDriver, open_driver: OpenDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """Two drivers that delete the same volumes at once do not count as users of them."""
        volumes = self.make(driver, self.requests(origin, 30, mode))
        outcomes = _at_once([driver, open_driver()], lambda each: list(each.delete(volumes)))
        assert driver.volumes() == ()
        assert [o.error for result in outcomes for o in result] == [None] * 60

    def test_delete_of_another_clone(
        self, driver: StorageDriver, origin: Origin, mode: CloneMode
    ) -> None:
        """A volume is deleted only for the clone in its labels on the host."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        wrong = attrs.evolve(volume, labels=attrs.evolve(volume.labels, template="other"))
        [outcome] = driver.delete([wrong])
        assert isinstance(outcome.error, Conflict)
        assert driver.volumes() == (volume,)

    def test_delete_busy(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> None:
        """A volume in use is not deleted; the others of its batch are."""
        volumes = self.make(driver, self.requests(origin, 3, mode))
        with self.active(driver, volumes[1]):
            with self.busy(volumes[1]):
                outcomes = by_key(driver.delete(volumes))
            assert isinstance(outcomes["web-2-disk0"].error, WrongState)
            assert outcomes["web-1-disk0"].ok
            assert outcomes["web-3-disk0"].ok
            assert driver.volumes() == (volumes[1],)
        [outcome] = driver.delete([volumes[1]])
        assert outcome.ok, outcome.error
        assert driver.volumes() == ()


def _at_once(drivers: Sequence[StorageDriver], work: Callable[[StorageDriver], T]) -> list[T]:
    """Run ``work`` on all drivers at once; returns its results. Closes all but the first."""
    barrier = threading.Barrier(len(drivers))

    def run(driver: StorageDriver) -> T:
        barrier.wait(TIMEOUT)
        return work(driver)

    with ThreadPoolExecutor(len(drivers)) as pool:
        results = [future.result(TIMEOUT) for future in [pool.submit(run, d) for d in drivers]]
    for driver in drivers[1:]:
        driver.close()
    return results


def _check(outcome: Outcome[None]) -> None:
    if outcome.error is not None:
        raise outcome.error


def _run(*argv: str | Path) -> None:
    subprocess.run([str(word) for word in argv], check=True, timeout=TIMEOUT, capture_output=True)
