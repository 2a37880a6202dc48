"""Conformance tests for warm forks: a part of the suite for hypervisor backends.

They are skipped, with the reason, where a driver declares that it has none.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from vmcloner_core.drivers import HypervisorDriver, WarmInterface
from vmcloner_core.errors import WrongState
from vmcloner_core.model import DomainSpec, State
from vmcloner_core.testing.snapshots import done

SERIAL = "seed"


class WarmConformance:
    """The tests of :class:`WarmInterface`; the hypervisor suite has the fixtures they use."""

    @pytest.fixture
    def warm(self, driver: HypervisorDriver) -> WarmInterface:
        """Return the driver's interface for warm forks."""
        if driver.warm is None:
            pytest.skip(f"the driver declares that it has no warm forks: {driver.not_warm}")
        return driver.warm

    @pytest.fixture
    def origin(self, driver: HypervisorDriver) -> Iterator[Path]:
        """Return an empty folder, which whatever runs the guests can reach."""
        folder = driver.context.host.warm / secrets.token_hex(4)
        folder.mkdir(parents=True)
        yield folder
        shutil.rmtree(folder)

    @pytest.fixture
    def saved(
        self,
        driver: HypervisorDriver,
        warm: WarmInterface,
        specs: tuple[DomainSpec, ...],
        origin: Path,
    ) -> Path:
        """Return the folder with the memory of the first domain; all are defined."""
        done(driver.define(specs))
        warm.boot(specs[0].name, origin)
        assert driver.states()[specs[0].name] is State.RUNNING
        warm.save(specs[0].name, origin)
        assert driver.states()[specs[0].name] is State.STOPPED
        return origin

    def test_forks_continue_from_one_memory(
        self,
        driver: HypervisorDriver,
        warm: WarmInterface,
        specs: tuple[DomainSpec, ...],
        saved: Path,
    ) -> None:
        """As often as one likes, several at once; the memory stays as it was."""
        names = [spec.name for spec in specs[1:]]
        for _ in range(2):
            assert all(o.changed for o in done(warm.load(names, saved)))
            assert {driver.states()[name] for name in names} == {State.PAUSED}
            done(warm.load(names, saved))  # after a kill
            done(warm.go_on(dict.fromkeys(names), SERIAL))
            assert {driver.states()[name] for name in names} == {State.RUNNING}
            done(warm.connect(names))
            assert not any(o.changed for o in done(warm.connect(names)))
            assert all(isinstance(o.error, WrongState) for o in warm.load(names, saved))
            done(driver.destroy(names))
            warm.check(saved)

    def test_memory_that_is_not_as_it_was_saved(
        self,
        driver: HypervisorDriver,
        warm: WarmInterface,
        specs: tuple[DomainSpec, ...],
        saved: Path,
    ) -> None:
        """One file that is shorter, or gone, is refused; nothing starts."""
        name = specs[1].name
        for file in sorted(saved.iterdir()):
            content = file.read_bytes()
            with file.open("r+b") as stream:
                stream.truncate(len(content) // 2)
            self._refused(driver, warm, name, saved)
            file.unlink()
            self._refused(driver, warm, name, saved)

    def _refused(
        self, driver: HypervisorDriver, warm: WarmInterface, name: str, saved: Path
    ) -> None:
        with pytest.raises(WrongState):
            warm.check(saved)
        self._not_loaded(driver, warm, name, saved)

    @staticmethod
    def _not_loaded(driver: HypervisorDriver, warm: WarmInterface, name: str, saved: Path) -> None:
        [outcome] = warm.load([name], saved)
        assert isinstance(outcome.error, WrongState)
        assert driver.states()[name] is State.STOPPED

    def test_forks_have_the_devices_of_their_memory(
        self,
        driver: HypervisorDriver,
        warm: WarmInterface,
        specs: tuple[DomainSpec, ...],
        saved: Path,
    ) -> None:
        """A domain that was changed since is refused; what it depends on tells that before."""
        if driver.sizes is None:
            pytest.skip("the driver declares that its domains don't change")
        first, second = specs[:2]
        larger = attrs.evolve(second, memory=2 * second.memory)
        assert warm.depends(first) == warm.depends(second) != warm.depends(larger)
        done(driver.sizes.resize([second.name], larger.memory, None))
        self._not_loaded(driver, warm, second.name, saved)

    def test_only_what_was_booted_for_it_is_saved(
        self,
        driver: HypervisorDriver,
        warm: WarmInterface,
        specs: tuple[DomainSpec, ...],
        origin: Path,
    ) -> None:
        """The memory of a domain that was started otherwise is nowhere."""
        done(driver.define(specs[:1]))
        with pytest.raises(WrongState):
            warm.save(specs[0].name, origin)
        done(driver.start([specs[0].name]))
        with pytest.raises(WrongState):
            warm.save(specs[0].name, origin)
        with pytest.raises(WrongState):
            warm.check(origin)
