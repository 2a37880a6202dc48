"""Conformance tests of captures, for pools that have them; a part of the suite for storage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vmcloner_core.drivers import CaptureInterface, CaptureRequest, StorageDriver
from vmcloner_core.errors import Conflict, NotFound, WrongState
from vmcloner_core.model import CloneMode, CloneRequest, Origin, Outcome, Volume
from vmcloner_core.testing.suite import differs

MARK, SEALED = b"\xc3" * 4096, b"\x5e" * 4096


def _nothing(*_: object) -> None:
    pass


def _write(path: Path) -> None:
    with path.open("r+b", buffering=0) as stream:
        stream.seek(4096)
        stream.write(SEALED)


class CaptureTests:
    """The tests; what they use beside is the suite's for storage."""

    def requests(  # noqa: D102 - the suite's
        self, origin: Origin, count: int, mode: CloneMode, *, fleet: str = "web", first: int = 1
    ) -> list[CloneRequest]:
        raise NotImplementedError

    def make(  # noqa: D102
        self, driver: StorageDriver, requests: Sequence[CloneRequest]
    ) -> list[Volume]:
        raise NotImplementedError

    def active(  # noqa: D102
        self, driver: StorageDriver, volume: Volume
    ) -> AbstractContextManager[None]:
        raise NotImplementedError

    def write(self, volume: Volume, offset: int, content: bytes) -> None:  # noqa: D102
        raise NotImplementedError

    def content(self, driver: StorageDriver, volume: Volume) -> bytes:  # noqa: D102
        raise NotImplementedError

    @pytest.fixture
    def capturing(self, driver: StorageDriver) -> CaptureInterface:
        """Return the pool's captures; skips where it has none."""
        if driver.capturing is None:
            pytest.skip("the backend declares that it captures no disks")
        return driver.capturing

    @pytest.fixture
    def changed_volume(self, driver: StorageDriver, origin: Origin, mode: CloneMode) -> Volume:
        """Return a volume to which its guest has written."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        with self.active(driver, volume):
            self.write(volume, 0, MARK)
        return volume

    def captured(
        self,
        driver: StorageDriver,
        volume: Volume,
        digest: str = "captured:1",
        template: str = "made",
    ) -> Outcome[Origin]:
        """Capture a volume, with a change to the copy."""
        capturing = driver.capturing
        assert capturing is not None
        request = CaptureRequest(template=template, volume=volume, digest=digest)
        with self.active(driver, volume):
            return capturing.capture(request, _write, _nothing, _nothing)

    def test_capture(
        self, driver: StorageDriver, capturing: CaptureInterface, changed_volume: Volume
    ) -> None:
        """The image is what the volume was, with the change; the volume stays; clones work."""
        before = self.content(driver, changed_volume)
        outcome = self.captured(driver, changed_volume)
        origin = outcome.unwrap()
        assert (origin.template, origin.digest, outcome.changed) == ("made", "captured:1", True)
        assert origin in driver.origins()
        assert differs(self.content(driver, changed_volume), before) is None
        [clone] = self.make(
            driver, self.requests(origin, 1, driver.default_mode, fleet="new", first=1)
        )
        assert differs(self.content(driver, clone), MARK + SEALED + before[8192:]) is None
        with capturing.image("made") as path:
            assert differs(path.read_bytes(), MARK + SEALED + before[8192:]) is None

    @pytest.mark.usefixtures("capturing")
    def test_capture_twice(self, driver: StorageDriver, changed_volume: Volume) -> None:
        """The same digest changes nothing; another one is a Conflict, and replaces nothing."""
        first = self.captured(driver, changed_volume).unwrap()
        again = self.captured(driver, changed_volume)
        assert (again.unwrap(), again.changed) == (first, False)
        with pytest.raises(Conflict):
            self.captured(driver, changed_volume, "captured:2")
        assert [o.digest for o in driver.origins() if o.template == "made"] == ["captured:1"]

    def test_capture_whose_change_fails(
        self, driver: StorageDriver, capturing: CaptureInterface, changed_volume: Volume
    ) -> None:
        """What the change raises ends the capture; no image is left, and the next one works."""

        def fail(_path: Path) -> None:
            raise WrongState("it can't be sealed")

        request = CaptureRequest(template="made", volume=changed_volume, digest="captured:1")
        with self.active(driver, changed_volume), pytest.raises(WrongState, match="be sealed"):
            capturing.capture(request, fail, _nothing, _nothing)
        assert [origin.template for origin in driver.origins()] == ["tiny"]
        assert not list(driver.leftovers())
        assert self.captured(driver, changed_volume).changed

    def test_capture_of_a_capture(
        self, driver: StorageDriver, capturing: CaptureInterface, changed_volume: Volume
    ) -> None:
        """A captured image can be deleted once its clones are; so can what it was captured from."""
        self.captured(driver, changed_volume).unwrap()
        [outcome] = driver.delete([changed_volume])
        outcome.unwrap()
        driver.delete_origin("tiny").unwrap()
        assert [origin.template for origin in driver.origins()] == ["made"]
        with capturing.image("made") as path:
            assert path.read_bytes()[:8192] == MARK + SEALED
        driver.delete_origin("made").unwrap()
        assert driver.origins() == ()
        with pytest.raises(NotFound), capturing.image("made"):
            pass

    def test_capture_need(self, capturing: CaptureInterface, changed_volume: Volume) -> None:
        """What a capture takes is at most the whole volume, rounded up."""
        assert 0 <= capturing.need(changed_volume) <= 2 * changed_volume.size + 4 * 1024**2
