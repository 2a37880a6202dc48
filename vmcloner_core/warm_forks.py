"""Start clones from the memory of a warm origin, and make them who they are.

A fork is loaded, paused. From the moment that its guest continues, its disk and the memory of its
origin belong to different moments: it can't be forked again. So one that doesn't become the clone
that it shall be is powered off, and its next start boots it from its disk, which is whole.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core import reseeding
from vmcloner_core.drivers import HypervisorDriver, WarmInterface
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Outcome
from vmcloner_core.names import fold
from vmcloner_core.outcomes import Backend, settled
from vmcloner_core.plan import EMULATED
from vmcloner_core.records import Records
from vmcloner_core.warm_origins import WarmOrigin, WarmOrigins

log = logging.getLogger(__name__)
PATIENCE = 120.0
"""Seconds in which a guest has to become somebody, at full speed; see :func:`patience`."""


@attrs.frozen
class Forks:
    """Starts clones that wait to be forked. Thread-safe.

    :param backend: returns the backend of a kind and name, for messages.
    :param records: have the clones' seeds.
    :param emulates: tells whether the guests of the hypervisor of a name are emulated.
    """

    origins: WarmOrigins
    records: Records
    backend: Callable[[str, str], Backend]
    emulates: Callable[[str], bool]

    def due(
        self, driver: HypervisorDriver, names: Sequence[str]
    ) -> Mapping[str, Outcome[WarmOrigin]]:
        """Return the origins of those clones that are to be forked now, by the clones' names.

        The others boot. If one of them can't be forked any more, that is logged, and forgotten; one
        whose guest has half an identity of its own, and can't be powered off, has the error.
        """
        waiting = self.origins.waiting()
        found: dict[str, Outcome[WarmOrigin]] = {}
        for name in names:
            if name not in waiting:
                continue
            try:
                origin = self._due(driver, name, fresh=waiting[name])
            except VmclonerError as error:
                found[name] = Outcome(key=name, error=error)
            else:
                if origin is not None:
                    found[name] = Outcome(key=name, value=origin)
        return found

    def _due(self, driver: HypervisorDriver, name: str, *, fresh: bool) -> WarmOrigin | None:
        fork = self.origins.fork_of(name)
        if fork is None:
            gone = "its warm origin is gone" if fresh else "its fork was not finished"
            log.warning("%s boots from its disk: %s", name, gone)
            self.give_up(driver, name)
        elif driver.warm is None or _has_run(driver, name, fork[1]):
            log.warning("%s boots from its disk: it was started by other means", name)
            self.origins.end(name)  # its guest, if it is there, is no unfinished fork
        else:
            return fork[0]
        return None

    def load(
        self, driver: HypervisorDriver, due: Mapping[str, WarmOrigin]
    ) -> Iterator[Outcome[None]]:
        """Load the memory of clones that are due; they are paused then."""
        for origin in {origin.key: origin for origin in due.values()}.values():
            names = [name for name, own in due.items() if own.key == origin.key]
            loading = functools.partial(_warm(driver).load, names, origin.folder)
            yield from settled(loading, names, self._asked(driver, "load"))

    def finish(
        self, driver: HypervisorDriver, loaded: Mapping[str, WarmOrigin]
    ) -> Iterator[Outcome[None]]:
        """Let loaded clones continue, and become who they are; those that don't are powered off.

        Copies of their parent are who they are already.
        """
        if not loaded:
            return
        warm, left = _warm(driver), list(loaded)
        failed: dict[str, VmclonerError] = {}

        def done(
            part: str, names: Sequence[str], outcomes: Callable[[], Iterator[Outcome[None]]]
        ) -> None:
            for outcome in settled(outcomes, tuple(names), self._asked(driver, part)):
                if outcome.error is not None:
                    left.remove(outcome.key)
                    failed[outcome.key] = outcome.error

        seeds = self._begun(left, failed)
        left = list(seeds)
        done("go_on", left, lambda: warm.go_on({n: seeds[n] for n in left}, reseeding.SERIAL))
        seconds = patience(PATIENCE, emulated=self.emulates(driver.name))
        own = [name for name in left if not loaded[name].identical]
        done("reseed", own, lambda: reseeding.reseed(driver, own, timeout=seconds))
        done("connect", left, lambda: warm.connect(list(left)))
        copies = [name for name in left if loaded[name].identical]
        if copies and driver.agents is not None:  # the others get the time with their identity
            try:
                driver.agents.set_clocks(copies)
            except VmclonerError as wrong:  # they run all the same
                log.warning("the clocks of %s: %s", fold(copies), wrong)
        for name in left:
            self.origins.end(name)
            yield Outcome(key=name)
        for name, error in failed.items():
            try:
                self.give_up(driver, name)
            except VmclonerError as still:
                log.warning("%s isn't powered off: %s", name, still)
            yield Outcome(key=name, error=error)

    def end_killed(self, driver: HypervisorDriver, name: str) -> None:
        """Power off a paused clone that a killed run was forking; it is forked again if it can be.

        :raises VmclonerError: it can't be powered off.
        """
        fork = self.origins.fork_of(name)
        if fork is None:
            self.give_up(driver, name)
        elif not _has_run(driver, name, fork[1]):
            self._power_off(driver, name)

    def give_up(self, driver: HypervisorDriver, name: str) -> None:
        """Have a clone boot from its disk at its next start; it is powered off now.

        :raises VmclonerError: it can't be powered off.
        """
        self._power_off(driver, name)
        self.origins.end(name)

    def _power_off(self, driver: HypervisorDriver, name: str) -> None:
        stopping = functools.partial(driver.destroy, [name])
        stopped = self.backend("hypervisor", driver.name).of("destroy")
        for outcome in settled(stopping, [name], stopped):
            outcome.unwrap()

    def _begun(
        self, names: Sequence[str], failed: dict[str, VmclonerError]
    ) -> Mapping[str, Path | None]:
        """Note that clones continue now; returns their seeds."""
        seeds: dict[str, Path | None] = {}
        for name in names:
            try:
                record = self.records.find(name)
                self.origins.begin(name)
                seeds[name] = record.seed.image if record is not None else None
            except VmclonerError as error:
                failed[name] = error
        return seeds

    def _asked(self, driver: HypervisorDriver, part: str) -> Backend:
        return self.backend("hypervisor", driver.name).of(f"warm.{part}")


def patience(seconds: float, *, emulated: bool) -> float:
    """Return the seconds that a guest gets for what takes so many at full speed."""
    return seconds * (EMULATED if emulated else 1)


def _warm(driver: HypervisorDriver) -> WarmInterface:
    assert driver.warm is not None  # noqa: S101 - only such clones are due
    return driver.warm


def _has_run(driver: HypervisorDriver, name: str, since: float) -> bool:
    """Tell whether a guest has said something since then: somebody else has started it."""
    if driver.consoles is None:
        return False
    try:
        status = driver.consoles.log(name).stat()
    except OSError:
        return False
    return status.st_size > 0 and status.st_mtime > since
