"""Tables read into attrs classes, of plugins too."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import pytest

from vmcloner_core.errors import BackendError
from vmcloner_core.tomlfile import InvalidTable, structure
from vmcloner_core.units import Size


@attrs.frozen(kw_only=True)
class Disk:
    """A table in a table."""

    size: Size
    mode: Literal["thin", "thick"] = "thin"


def _short(_disk: object, _attribute: object, name: str) -> None:
    if len(name) > 8:
        raise ValueError("is too long")


@attrs.frozen(kw_only=True)
class Settings:
    """What a plugin's settings may have."""

    name: str = attrs.field(validator=_short)
    jobs: int | str = 1
    rate: float | None = None
    disks: tuple[Disk, ...] = ()
    tags: list[str] = attrs.field(factory=list)
    pools: Mapping[str, Disk] = attrs.field(factory=dict)
    more: Any = None


def test_every_kind_of_value_is_read():
    disk = {"size": "1KiB", "mode": "thick"}
    table = {"name": "a", "jobs": "auto", "rate": 2, "disks": [disk], "tags": ["x"],
             "pools": {"p": disk}, "more": {"x": [1]}}  # fmt: skip
    made = Disk(size=1024, mode="thick")
    assert structure(table, Settings, where="f") == Settings(
        name="a", jobs="auto", rate=2.0, disks=(made,), tags=["x"], pools={"p": made},
        more={"x": [1]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "problems"),
    [
        ({}, [("name", "key 'name' is missing")]),
        ({"name": "far too long"}, [("", "is too long")]),
        ({"name": "a", "jobs": True},
         [("jobs", "must be a string or a whole number, not True")]),
        ({"name": "a", "jbos": 1, "rate": "x"},
         [("rate", "must be a number, not 'x'"),
          ("", "unknown key 'jbos' (did you mean 'jobs'?)")]),
        ({"name": "a", "disks": {}},
         [("disks", "must be an array of tables, [[disks]], not a table, [disks]")]),
        ({"name": "a", "disks": [{"size": 1}, {"mode": "fat"}]},
         [("disks[1].size", "key 'size' is missing"),
          ("disks[1].mode", "must be 'thin' or 'thick', not 'fat'")]),
        ({"name": "a", "tags": ["x", 1]}, [("tags", "must be a list of strings, not ['x', 1]")]),
        ({"name": "a", "pools": {"p": 3}}, [("pools['p']", "must be a table, not 3")]),
    ],
)  # fmt: skip
def test_all_that_is_wrong_is_named_with_its_key(table, problems):
    with pytest.raises(InvalidTable) as caught:
        structure(table, Settings, where="f")
    assert sorted(caught.value.problems) == sorted(problems)


def test_a_class_that_no_table_can_fill_is_the_plugins_fault():
    @attrs.frozen(kw_only=True)
    class Odd:
        when: set[int] = attrs.field(factory=set)

    with pytest.raises(BackendError, match=r"when: a table can't set .*set\[int\]"):
        structure({"when": [1]}, Odd, where="f")
