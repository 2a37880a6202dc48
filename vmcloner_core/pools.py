"""Pools: fleets whose clones are kept ready, for whoever takes one for a while."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Collection
from pathlib import Path

import attrs

from vmcloner_core.choices import choice
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, did_you_mean
from vmcloner_core.model import check_ttl
from vmcloner_core.names import MAX_LABEL, check_fleet, check_template
from vmcloner_core.os_errors import of_state
from vmcloner_core.plan import Readiness, check_identical, check_timeout
from vmcloner_core.trusted_files import exists, make_folder, read_file, replacing

MAX_SIZE = 1000
TTL = 900
"""Seconds that a pool's clones are wanted for after somebody has filled it."""
_SUFFIX = "-pool"


class PoolReset(enum.Enum):
    """When a clone of a pool is reset after it was used: what a user leaves stays until then."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


def _reset(value: PoolReset | str) -> PoolReset:
    return choice(PoolReset, "reset", value)


def _name(value: str) -> str:
    return value and check_fleet(value)


def _size(_instance: object, _attribute: object, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise InvalidRequest(f"a pool's size is 1 to {MAX_SIZE}, not {value!r}")


def _timeout(_instance: object, _attribute: object, value: float | None) -> None:
    if value is not None:
        check_timeout(value)


def _ttl(_instance: object, _attribute: object, value: int) -> None:
    if value is None or isinstance(value, str):
        raise InvalidRequest(f"ttl: not a number of seconds: {value!r}")
    check_ttl(value)


@attrs.frozen(kw_only=True)
class Pool:
    """A fleet whose clones are kept ready.

    :param template: what they are made of. :param name: the fleet's; ``TEMPLATE-pool`` if not
        given. :param size: how many there are, taken ones too.
    :param reset: when a clone that is given back is reset to its template.
    :param memory: whether each clone's memory is kept when it gets ready, so that a reset takes a
        second instead of a boot: the clone goes on from there.
    :param warm: whether clones, new and reset ones, are forked from the template's warm origin
        instead of booted. It is made if there is none.
    :param identical: whether forks stay who their parent was; see :class:`CreateRequest`.
    :param ready: what is waited for before it is taken; None for what its template says.
    :param timeout: seconds for each clone to get ready; None for :class:`Readiness`'s default.
    :param ttl: seconds after which ``gc --expired`` may remove clones that nobody uses. Engines
        that use the pool put that off.
    """

    template: str = attrs.field(converter=check_template)
    name: str = attrs.field(default="", converter=_name)
    size: int = attrs.field(default=4, validator=_size)
    reset: PoolReset = attrs.field(default=PoolReset.ALWAYS, converter=_reset)
    memory: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    warm: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    identical: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    ready: str | None = None
    timeout: float | None = attrs.field(default=None, validator=_timeout)
    ttl: int = attrs.field(default=TTL, validator=_ttl)

    def __attrs_post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _named_after(self.template))
        if self.memory and self.warm:
            raise InvalidRequest(
                f"pool {self.name}: memory and warm are two ways to save a boot",
                hint="choose one: memory keeps each clone's own, warm shares one of the template",
            )
        check_identical(identical=self.identical, warm=self.warm)
        self.readiness  # noqa: B018 - raises if it can't be waited for

    @property
    def readiness(self) -> Readiness | None:
        """What is waited for; None for what the template says."""
        return None if self.ready is None else Readiness.parse(self.ready, timeout=self.timeout)


def _named_after(template: str) -> str:
    label = re.sub(r"[._]+", "-", template)[: MAX_LABEL - 2 - len(_SUFFIX)].rstrip("-")
    return f"{label}{_SUFFIX}"


class Definitions:
    """The definitions of a host's pools.

    A fleet with a definition is a pool's, also those clones of it that a killed run has left
    unfinished: they are reset. A fleet without one isn't touched.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all pools."""
        try:
            return sorted(file.stem for file in self._folder.glob("*.json") if file.name[0] != ".")
        except OSError as error:
            raise of_state(error, self._folder) from error

    def find(self, name: str) -> Pool | None:
        """Return a pool's definition, None if there is none.

        :raises BackendError: it is damaged.
        """
        file = self._folder / f"{check_fleet(name)}.json"
        if not exists(file):
            return None
        try:
            data = json.loads(read_file(file, trusted=False))
            pool = Pool(**data)
        except (InvalidRequest, ValueError, TypeError, RecursionError) as error:
            raise BackendError(f"{file} is damaged", hint=f"rm {file}") from error
        return pool if pool.name == name and _finite(pool.timeout) else None

    def get(self, name: str) -> Pool:
        """Return a pool's definition. :raises NotFound: there is none."""
        pool = self.find(name)
        if pool is None:
            raise NotFound(f"no pool {name!r}", hint=did_you_mean(name, self.names()))
        return pool

    def keep(self, pool: Pool) -> None:
        """Write a pool's definition."""
        if self.find(pool.name) == pool:
            return
        file = self._folder / f"{pool.name}.json"
        data = attrs.asdict(pool, value_serializer=lambda _i, _a, value: _plain(value))
        try:
            make_folder(self._folder)
            with replacing(file, 0o644) as stream:
                stream.write(json.dumps(data).encode())
        except OSError as error:
            raise of_state(error, file) from error

    def remove(self, names: Collection[str]) -> None:
        """Remove definitions; missing ones are fine."""
        for name in names:
            file = self._folder / f"{check_fleet(name)}.json"
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise of_state(error, file) from error


def _plain(value: object) -> object:
    return value.value if isinstance(value, PoolReset) else value


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
