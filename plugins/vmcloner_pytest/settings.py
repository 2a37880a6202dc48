"""What a project's pytest settings say of machines."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from vmcloner_core.errors import VmclonerError

if TYPE_CHECKING:
    from vmcloner_core import Pool

POOL = "vmcloner_pool"
TTL = "vmcloner_ttl"


@attrs.frozen(kw_only=True)
class Wanted:
    """What the settings ask for.

    :param ttl: seconds after which machines of a pytest that was killed are nobody's.
    :param pool: the pool that tests take machines from, None for none.
    """

    ttl: int
    pool: Pool | None

    @classmethod
    def of(cls, config: pytest.Config) -> Wanted:
        """Return what the settings ask for. :raises pytest.UsageError: they are wrong."""
        from vmcloner_core import Pool
        from vmcloner_core.units import parse_duration

        try:
            ttl = parse_duration(str(config.getini(TTL)))
            table = _table(config)
            if isinstance(table.get("ttl"), str):
                table["ttl"] = parse_duration(table["ttl"])
            pool = Pool(**{"ttl": ttl, **table}) if table else None
        except (VmclonerError, TypeError, ValueError, SyntaxError) as error:
            raise pytest.UsageError(f"{config.inipath}: {POOL}, {TTL}: {error}") from error
        return cls(ttl=ttl, pool=pool)


def _table(config: pytest.Config) -> dict[str, Any]:
    """Return the table that describes the pool; an empty one if there is none.

    pytest gives a table in ``[tool.pytest.ini_options]`` as Python prints it, what is in an ini
    file as it is there, which is TOML, and refuses one in ``[tool.pytest]``.
    """
    try:
        text = str(config.getini(POOL)).strip()
    except (TypeError, pytest.UsageError):
        return _native(config)
    if not text:
        return {}
    try:
        found = tomllib.loads(f"pool = {' '.join(text.split())}")["pool"]
    except tomllib.TOMLDecodeError:
        found = ast.literal_eval(text)
    return _checked(found)


def _native(config: pytest.Config) -> dict[str, Any]:
    if config.inipath is None:
        return {}
    data = tomllib.loads(config.inipath.read_text(encoding="utf-8"))
    tables = data.get("tool", data)
    return _checked(tables.get("pytest", {}).get(POOL, {}))


def _checked(found: object) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"not a table like {{template = 'tiny', size = 4}}: {found!r}")
    return dict(found)
