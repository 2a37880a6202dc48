"""Values of single clones: from files, and what becomes of them."""

import shutil

import pytest

from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources
from vmcloner_core.values_file import read_values

from ..conftest import TEMPLATE


def read(tmp_path, text, name="values.csv"):
    file = tmp_path / name
    file.write_text(text)
    return read_values(file, "web")


def test_csv(tmp_path):
    text = '﻿clone, memory,role\n1,1GiB,"a, ""b"" {{\nc"\nweb-20,,007\n'
    assert read(tmp_path, text) == {
        1: {"memory": "1GiB", "role": 'a, "b" {{\nc'},
        20: {"role": "007"},
    }


def test_toml(tmp_path):
    text = '[1]\nmemory = "1GiB"\nvcpus = 2\n["web-20"]\nport = 8020\n'
    found = read(tmp_path, text, "values.toml")
    assert found == {1: {"memory": "1GiB", "vcpus": 2}, 20: {"port": 8020}}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("v.csv", "", "line 1"),
        ("v.csv", "memory\n1GiB\n", "line 1"),
        ("v.csv", "clone,a,a\n1,x,y\n", "line 1"),
        ("v.csv", "clone,memory\n1\n", "line 2: must have 2 cells"),
        ("v.csv", "clone,memory\n1,1GiB,x\n", "line 2: must have 2 cells"),
        ("v.csv", 'clone,memory\n1,"1GiB\n', "not CSV"),
        ("v.csv", "clone,memory\n1,much\n", "line 2: memory"),
        ("v.csv", "clone,memory\n1,0\n", "line 2: memory"),
        ("v.csv", "clone,vcpus\n1,two\n", "line 2: vcpus"),
        ("v.csv", "clone,vcpus\n1,0\n", "line 2: vcpus"),
        ("v.csv", "clone,role\n0,x\n", "'0' is not a clone"),
        ("v.csv", "clone,role\ndb-1,x\n", "db-1 is not in fleet 'web'"),
        ("v.csv", "clone,role\n1,x\nweb-1,y\n", "web-1 is listed twice"),
        ("v.csv", "clone,my role\n1,x\n", "invalid key 'my role'"),
        ("v.csv", "clone,mac\n1,x\n", "is set by vmcloner"),
        ("v.toml", "a = 1\n", "must be a table"),
        ("v.toml", "[1]\na = [1]\n", "a string or an integer"),
        ("v.toml", "[1]\na = true\n", "a string or an integer"),
        ("v.toml", "[1\n", "not TOML"),
        ("v.toml", "a = " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name, text, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        read(tmp_path, text, name)
    assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize("content", [b"clone,a\n1,\xff\n", b"clone,a\n" + b"1,x\n" * 300_000])
def test_hostile_files(tmp_path, content):
    file = tmp_path / "v.csv"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest):
        read_values(file, "web")
    with pytest.raises(InvalidRequest, match="No such file"):
        read_values(tmp_path / "nowhere.csv", "web")


@pytest.fixture
def specs(lab, monkeypatch):
    """The specifications that domains were defined by, by name."""
    seen = {}
    define = lab.machines.define

    def watched(specs):
        seen.update({spec.name: spec for spec in specs})
        return define(specs)

    monkeypatch.setattr(lab.machines, "define", watched)
    return seen


def test_a_clone_may_have_more_than_its_template(lab, specs):
    own = {2: {"memory": "512MiB", "vcpus": "4"}}
    lab.engine.create("web", "t1", count=3, values=own)
    assert [specs[f"web-{n}"].memory >> 20 for n in (1, 2, 3)] == [256, 512, 256]
    assert [specs[f"web-{n}"].vcpus for n in (1, 2, 3)] == [1, 4, 1]


def test_memory_is_counted_clone_by_clone(lab):
    with pytest.raises(NotEnoughResources, match="memory"):
        lab.engine.create("web", "t1", count=2, start=True, values={2: {"memory": "100TiB"}})
    assert lab.engine.list() == ()


def test_a_templates_values_are_each_clones_own(lab, specs):
    lab.template("t1", TEMPLATE + '[values]\nport = "{{ 8000 + index }}"\nrack = 7\n')
    lab.engine.create("web", "t1", count=2, values={2: {"rack": "9"}})
    assert specs["web-1"].values == {"port": "8001", "rack": 7}
    assert specs["web-2"].values == {"port": "8002", "rack": "9"}


@pytest.mark.parametrize("asked", [{"count": 2}, {"add": 2}])
def test_values_of_a_clone_that_there_will_not_be_are_refused(lab, asked):
    with pytest.raises(InvalidRequest, match=r"given for web-\[3,77\], .*will be web-\[1-2\]"):
        lab.engine.create("web", "t1", **asked, values={n: {"role": "x"} for n in (1, 3, 77)})
    assert lab.engine.list() == ()
    assert lab.engine.create("web", "t1", **asked, values={1: {"role": "x"}, 77: {}}).ok


def test_values_that_would_change_a_clone_are_refused(lab):
    lab.template("t1", TEMPLATE + '[identity]\nprovider = "cloud-init"\nauthorized_keys = []\n')
    own = {1: {"role": "a", "rank": 1}, 2: {"role": "b"}}
    lab.engine.create("web", "t1", count=2, values=own)
    again = lab.engine.create("web", "t1", count=3, values={1: {"rank": "1"}, **own})
    assert (len(again.results), again.plan.warnings) == (1, ())
    for changed in ({"role": "b"}, {"memory": "1GiB"}):
        with pytest.raises(
            Conflict, match=f"web-1 .*: {next(iter(changed))} .*delete the clone first"
        ):
            lab.engine.create("web", "t1", count=4, values={1: changed, 4: changed})
    assert len(lab.engine.list()) == 3


def test_values_that_a_killed_create_was_to_give_may_be_others(lab, specs):
    lab.template("t1", TEMPLATE + '[identity]\nprovider = "cloud-init"\nauthorized_keys = []\n')
    lab.engine.create("web", "t1", count=1, values={1: {"vcpus": 2}})
    del lab.machines.machines["web-1"]
    assert lab.engine.create("web", "t1", count=1, values={1: {"vcpus": 3}}).ok
    assert specs["web-1"].vcpus == 3


def test_values_that_are_more_than_can_be_kept_make_nothing(lab):
    lab.template("t1", TEMPLATE + '[identity]\nprovider = "cloud-init"\nauthorized_keys = []\n')
    with pytest.raises(InvalidRequest, match="more than"):
        lab.engine.create("web", "t1", count=2, values={2: {"motd": "x" * 1024**2}})
    assert lab.engine.list() == ()


def test_values_that_are_not_kept_are_warned_of(lab):
    """Those of a clone of before every clone had a record."""
    own = {1: {"memory": "512MiB"}}
    assert lab.engine.create("web", "t1", count=2, values=own).plan.warnings == ()
    assert lab.engine.create("web", "t1", count=2, values=own).plan.warnings == ()
    with pytest.raises(Conflict, match="memory"):
        lab.engine.create("web", "t1", count=2, values={1: {"memory": "1GiB"}})
    shutil.rmtree(lab.engine.host.records)
    (warning,) = lab.engine.create("web", "t1", count=2, values=own).plan.warnings
    assert warning.startswith("web-1 already exists")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('port = "{{ nobody }}"', r"values\.port"),
        ('vcpus = "two"', "values: vcpus"),
        ('memory = "{{ index }} apples"', "values: memory"),
        ('index = "7"', "is set by vmcloner"),
    ],
)
def test_what_a_template_cannot_fill_in_makes_nothing(lab, line, reason):
    lab.template("t1", TEMPLATE + f"[values]\n{line}\n")
    with pytest.raises(InvalidRequest, match=reason):
        lab.engine.create("web", "t1", count=1)
    assert lab.engine.list() == ()
