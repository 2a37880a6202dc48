"""Backends that fail on demand, for tests of what is built on vmcloner.

A driver of another plugin, of which chosen calls fail, hang, take long, answer in another order or
end the process: by a script, or at random by a seed. In the settings::

    [hosts.local.storage.flaky]
    driver = "faulty"
    of = "files"
    settings = { path = "/var/lib/vmcloner/flaky" }
    faults = [{ call = "clone", at = 2, fault = "die-after" }]

The backends ``faulty`` of storage and hypervisors are made of this. :func:`spoil` does the same to
a driver in a program's own tests.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from vmcloner_core import drivers
from vmcloner_core.drivers import (
    BootProvider,
    DriverContext,
    HypervisorDriver,
    IdentityProvider,
    ImageBuilder,
    StorageDriver,
)
from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.hooks import HypervisorBackend, StorageBackend
from vmcloner_core.model import Outcome
from vmcloner_core.plugins import PluginHost
from vmcloner_core.tomlfile import structure
from vmcloner_core.trusted_files import make_folder

D = TypeVar("D", StorageDriver, HypervisorDriver, BootProvider, IdentityProvider, ImageBuilder)
LONG = 3600.0
QUIET = frozenset({"close"})
"""Calls that are never spoiled: a process must be able to end."""
_INTERFACES = tuple(
    getattr(drivers, name) for name in drivers.__all__ if name.endswith("Interface")
)
"""What a driver may have as an attribute: its optional parts."""


class FaultKind(enum.Enum):
    """What goes wrong with a call.

    ``FAIL`` before it has done anything, ``FAIL_AFTER`` once it has; ``SLOW`` and ``HANG`` wait
    first; ``SHUFFLE`` yields outcomes in the reverse order, ``LOSE`` leaves one out, ``DOUBLE``
    yields one twice, ``STRAY`` has one more, which nobody asked for, ``WRONG`` gives one a value of
    a wrong type; ``DIE`` and ``DIE_AFTER`` kill the process as SIGKILL does.
    """

    FAIL = "fail"
    FAIL_AFTER = "fail-after"
    SLOW = "slow"
    HANG = "hang"
    SHUFFLE = "shuffle"
    LOSE = "lose"
    DOUBLE = "double"
    STRAY = "stray"
    WRONG = "wrong"
    DIE = "die"
    DIE_AFTER = "die-after"


_OF_OUTCOMES = (FaultKind.LOSE, FaultKind.DOUBLE, FaultKind.STRAY, FaultKind.WRONG)
_AFTER = (FaultKind.FAIL_AFTER, FaultKind.DIE_AFTER, *_OF_OUTCOMES)


@attrs.frozen(kw_only=True)
class Fault:
    """One entry of a script.

    :param call: the driver's method, or one of a part: ``snapshots.create``; ``*`` for any.
    :param at: which call of it in a process, counted from 1; 0 for each.
    :param key: only the part of a call that is about this clone. Without one, a fault of single
        outcomes is that of the call's first.
    :param seconds: how long ``slow`` takes; ``hang`` takes an hour. :param once: not again in later
        processes either, so that the same command can succeed.
    """

    call: str
    fault: FaultKind
    at: int = 0
    key: str = ""
    seconds: float = 1.0
    once: bool = True

    def __attrs_post_init__(self) -> None:
        if self.call in QUIET:
            raise InvalidRequest(f"call {self.call!r} can't be spoiled")
        if self.at < 0 or not 0 <= self.seconds <= LONG:
            raise InvalidRequest(f"call {self.call!r}: at or seconds is out of range")


@attrs.frozen(kw_only=True)
class FaultySettings:
    """The settings of a faulty backend.

    :param of: the plugin that is spoiled. :param settings: its own settings.
    :param faults: what goes wrong, by a script. :param rate: at random, this share of calls.
    :param seed: of chance: the same gives the same faults in the same order of calls.
    :param kinds: what goes wrong at random.
    """

    of: str
    settings: dict[str, Any] = attrs.field(factory=dict)
    faults: tuple[Fault, ...] = ()
    rate: float = 0.0
    seed: int = 0
    kinds: tuple[FaultKind, ...] = (FaultKind.FAIL, FaultKind.FAIL_AFTER, FaultKind.SHUFFLE)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or not self.kinds:
            raise InvalidRequest("rate must be 0 to 1, with at least one of kinds")
        if self.of == "faulty":
            raise InvalidRequest("of must name another plugin")


class _Script:
    """Decides which calls go wrong. Thread-safe.

    :param folder: where it notes what must not happen again, and how often it was started; None
        for a driver that no later process uses.
    """

    def __init__(self, settings: FaultySettings, folder: Path | None) -> None:
        self._settings = settings
        self._folder = folder
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._done: set[int] = set()
        self._start: int | None = None

    def next(self, call: str, keys: Sequence[str]) -> Fault | None:
        """Return what goes wrong with this call, None if nothing does."""
        with self._lock:
            self._calls[call] += 1
            for number, fault in enumerate(self._settings.faults):
                if self._applies(fault, call, keys) and self._begun(number, fault):
                    return fault
            return self._by_chance(call)

    def _applies(self, fault: Fault, call: str, keys: Sequence[str]) -> bool:
        return (
            fault.call in ("*", call)
            and fault.at in (0, self._calls[call])
            and (not fault.key or fault.key in keys)
        )

    def _begun(self, number: int, fault: Fault) -> bool:
        """Note a fault that happens; False if it was to happen only once, and has."""
        if not fault.once:
            return True
        if number in self._done:
            return False
        self._done.add(number)
        if self._folder is None:
            return True
        try:
            make_folder(self._folder)
            os.close(os.open(self._folder / f"{number}", os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    def _by_chance(self, call: str) -> Fault | None:
        settings = self._settings
        if not settings.rate:
            return None
        what = f"{settings.seed} {self._started()} {call} {self._calls[call]}"
        drawn = hashlib.sha256(what.encode()).digest()
        if int.from_bytes(drawn[:8], "big") >= settings.rate * 2**64:
            return None
        return Fault(call=call, fault=settings.kinds[drawn[8] % len(settings.kinds)])

    def _started(self) -> int:
        """Return how many processes have used it before, so that each has faults of its own."""
        if self._start is None:
            self._start = 0
            if self._folder is not None:
                make_folder(self._folder)
                self._start = len([name for name in os.listdir(self._folder) if name[0] == "s"])  # noqa: PTH208
                (self._folder / f"s{self._start}-{os.getpid()}").touch()
        return self._start


def spoil(driver: D, settings: FaultySettings, *, folder: Path | None = None) -> D:
    """Have calls of a driver and its optional parts go wrong; returns the driver.

    :param folder: where it notes what must not happen again in later processes.
    :raises InvalidRequest: the script names a call that the driver doesn't have.
    """
    calls: dict[str, object] = dict(_calls("", driver))
    for name, part in _parts(driver):
        calls |= _calls(f"{name}.", part)
    for fault in settings.faults:
        if fault.call not in ("*", *calls):
            raise InvalidRequest(
                f"a {type(driver).__name__} has no call {fault.call!r}", hint=", ".join(calls)
            )
    script = _Script(settings, folder)
    for name, owner in calls.items():
        method = name.rpartition(".")[2]
        setattr(owner, method, _spoiled(name, getattr(owner, method), script))
    return driver


def _calls(prefix: str, owner: object) -> Iterator[tuple[str, object]]:
    """Yield the name of each public method of an object, and the object."""
    for name in dir(type(owner)):
        if name[0] != "_" and name not in QUIET and callable(getattr(type(owner), name)):
            yield prefix + name, owner


def _parts(driver: object) -> Iterator[tuple[str, object]]:
    """Yield the optional parts that a driver has, not those that it makes anew for each caller."""
    for name, value in vars(driver).items():
        if name[0] != "_" and isinstance(value, _INTERFACES):
            yield name, value


def _spoiled(name: str, call: Callable[..., Any], script: _Script) -> Callable[..., Any]:
    """Return a call that goes wrong where the script says so."""

    @functools.wraps(call)
    def made(*args: Any, **options: Any) -> Any:
        batch = args[0] if args and isinstance(args[0], Sequence | Mapping) else ()
        fault = script.next(name, [_clone(each) for each in batch])
        if fault is None:
            return call(*args, **options)
        hit = {_key(each) for each in batch if _clone(each) == fault.key}
        if hit and fault.fault is FaultKind.FAIL:
            return _without(fault, hit, call, batch, args[1:], options)
        _before(fault)
        answer = call(*args, **options)
        if isinstance(answer, Iterator):
            return _outcomes(fault, hit, answer)
        if fault.fault in _AFTER:
            _after(fault)
        return answer

    return made


def _key(item: object) -> str:
    """Return the key of the outcome of an item of a batch: a request, a volume, a name …"""
    found = (getattr(item, name, None) for name in ("volume_name", "key", "name"))
    return str(next((key for key in found if key), item))


def _clone(item: object) -> str:
    """Return the clone that an item is about."""
    return getattr(getattr(item, "labels", None), "clone", None) or _key(item)


def _error(fault: Fault) -> BackendError:
    return BackendError(f"{fault.call}: a fault that the settings ask for")


def _before(fault: Fault) -> None:
    match fault.fault:
        case FaultKind.FAIL:
            raise _error(fault)
        case FaultKind.SLOW:
            time.sleep(fault.seconds)
        case FaultKind.HANG:
            time.sleep(LONG)
        case FaultKind.DIE:
            os.kill(os.getpid(), signal.SIGKILL)


def _after(fault: Fault) -> None:
    if fault.fault is FaultKind.DIE_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)
    raise _error(fault)


def _without(
    fault: Fault,
    hit: Collection[str],
    call: Callable[..., Any],
    batch: Any,
    rest: Sequence[Any],
    options: Any,
) -> Iterator[Outcome[Any]]:
    """Make a call without the items that fail, whose outcomes come first."""
    yield from (Outcome(key=key, error=_error(fault)) for key in hit)
    left: Any = [each for each in batch if _key(each) not in hit]
    if isinstance(batch, Mapping):
        left = {key: batch[key] for key in left}
    if left:
        yield from call(left, *rest, **options)


def _outcomes(fault: Fault, hit: Collection[str], answer: Iterator[Any]) -> Iterator[Any]:
    """Yield the outcomes of a call that has gone wrong."""
    if fault.fault is FaultKind.SHUFFLE:
        yield from reversed(list(answer))
        return
    for place, outcome in enumerate(answer):
        if fault.fault not in _AFTER or (outcome.key not in hit if hit else place):
            yield outcome
        elif fault.fault is FaultKind.FAIL_AFTER:
            yield attrs.evolve(outcome, value=None, error=_error(fault))
        elif fault.fault is FaultKind.DIE_AFTER:
            _after(fault)
        elif fault.fault is FaultKind.DOUBLE:
            yield outcome
            yield outcome
        elif fault.fault is FaultKind.STRAY:
            yield outcome
            yield attrs.evolve(outcome, key="nobody-1")
        elif fault.fault is FaultKind.WRONG:
            yield attrs.evolve(outcome, value=object())


# --- backends -----------------------------------------------------------------------------------


def storage(context: DriverContext, settings: FaultySettings) -> StorageDriver:
    """Return a faulty pool."""
    made: StorageDriver = _made(context, settings, PluginHost().storage(settings.of))
    return made


def hypervisor(context: DriverContext, settings: FaultySettings) -> HypervisorDriver:
    """Return a faulty hypervisor."""
    made: HypervisorDriver = _made(context, settings, PluginHost().hypervisor(settings.of))
    return made


def _made(
    context: DriverContext, settings: FaultySettings, backend: StorageBackend | HypervisorBackend
) -> Any:
    own: object = structure(settings.settings, backend.settings, where=f"{context.name}: settings")
    driver: Any = backend.factory(context, own)
    return spoil(driver, settings, folder=context.host.state / "faulty" / context.name)
