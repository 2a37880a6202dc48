"""Labs: a file is read, compared with the host, and applied."""

import json
import os
import textwrap
import tomllib

import attrs
import pytest

from tests.conftest import TEMPLATE
from tests.networks import Networks
from vmcloner_core import Engine
from vmcloner_core.errors import (
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    PartialFailure,
    VmclonerError,
)
from vmcloner_core.labs import Lab, read_lab
from vmcloner_core.labs.example import EXAMPLE
from vmcloner_core.labs.reading import key_lines
from vmcloner_core.model import Capacity, NetworkRequest, State
from vmcloner_core.plan import Sizes
from vmcloner_core.request import TargetRequest

SHOP = """
name = "shop"

[fleets.web]
template = "t1"
count = 3
after = ["db"]

[fleets.db]
template = "t1"
count = 2
"""


@pytest.fixture
def shop(lab):
    """Return a function that writes a lab's file and reads it."""

    def write(text=SHOP):
        file = lab.folder / "lab.toml"
        file.write_text(textwrap.dedent(text))
        return read_lab(file)

    return write


def changes(found):
    return [(c.action, c.name, c.option) for c in found]


def names(lab):
    return [clone.name for clone in lab.engine.list()]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\ncuont = 3', "lab.toml:4: fleets.web.cuont: "
         "unknown key (did you mean 'count'?)"),
        ('nam = "a"', "lab.toml:1: nam: unknown key (did you mean 'name'?)"),
        ('name = "a"\n[fleet.web]\ntemplate = "t1"', "lab.toml:2: fleet: unknown key (did you "
         "mean 'fleets'?)"),
        ('name = "a"\n[fleets.web]\ncount = 3', "lab.toml:2: fleets.web.template: is missing"),
        ("[fleets.web]\ntemplate = 't1'", "lab.toml: name: is missing"),
        ('name = "A b"', "lab.toml:1: name: not a lab's name: 'A b'"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\ncount = "3"', "lab.toml:4: fleets.web.count: "
         "must be a whole number, not '3'"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\ncount = 10001', "lab.toml:4: "
         "fleets.web.count: must be 0 to 10000, not 10001"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\n\n[fleets.web]\ncount = 1', "lab.toml:5: "
         "fleets.web: is there twice"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\n[fleets]\nweb = 3', "lab.toml:5: web: is "
         "there twice"),
        ('name = "a"\nname = "b"', "lab.toml:2: name: is there twice"),
        ('name = "a"\n[fleets.web-1]\ntemplate = "t1"', "lab.toml:2: fleets.web-1: not a fleet"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nafter = ["web"]', "lab.toml:4: "
         "fleets.web.after: a circle: web after web"),
        ('name = "a"\n[fleets.a]\ntemplate = "t1"\nafter = ["b"]\n[fleets.b]\ntemplate = "t1"\n'
         'after = ["c"]\n[fleets.c]\ntemplate = "t1"\nafter = ["b"]', "lab.toml:7: fleets.b.after: "
         "a circle: b after c after b"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nafter = [\n  "bd"]\n[fleets.db]\n'
         'template = "t1"', "lab.toml:4: fleets.web.after[0]: no fleet 'bd' here (did you mean "
         "'db'?)"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nafter = ["db"]\n[fleets.db]\nstart = false\n'
         'template = "t1"', "lab.toml:4: fleets.web.after[0]: fleet 'db' isn't started"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nmemory = "much"', "lab.toml:4: "
         "fleets.web.memory: not a size: 'much'"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nvcpus = 0', "lab.toml:4: fleets.web.vcpus: "
         "vcpus must be 1 to 4096"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nready = "sshd"', "lab.toml:4: "
         "fleets.web.ready: can't wait for 'sshd'"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\ntimeout = -1', "lab.toml:4: "
         "fleets.web.timeout: timeout must be positive"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nvalues = { index = 3 }', "lab.toml:4: "
         "fleets.web.values.index: index is set by vmcloner"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\n[fleets.web.clones.7]\nrole = "x"',
         "lab.toml:4: fleets.web.clones: web-7 is outside the fleet (count is 1)"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nstart = false\nrun = ["x.sh"]', "lab.toml:5: "
         "fleets.web.run: needs clones that are started"),
        ('name = "a"\n[networks.x]\ncount = 0', "lab.toml:3: networks.x.count: must be >= 1"),
        ('name = "a"\n[networks.x]\nsubnet = "1.2"', "lab.toml:2: networks.x: subnet: "),
        ('name = "a"\n[images.x]\npull = true\noptions = { a = 1 }', "lab.toml:3: images.x.pull: "),
        ('name = "a"\nfile = "x"', "lab.toml:2: file: unknown key"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nscripts = []', "lab.toml:4: "
         "fleets.web.scripts: unknown key"),
        ("name = ", "lab.toml:1: name: Invalid value"),
        ('name = "a"\n[[fleets]]\ntemplate = "t1"', "lab.toml:2: fleets: must be a table"),
        ('name = "a"\n[fleets."we\'b"]\ntemplate = "t1"\nx = 1', "lab.toml:4: fleets.we'b.x: "
         "unknown key"),
        ('name = "a"\ndescription = "x\u2028y\x85z"\nx = 1', "lab.toml:3: x: unknown key"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nrun = ["a\\u0000b"]', "lab.toml:4: "
         "fleets.web.run[0]: must be a path"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nrun = ["~nobody-of-this-name/x"]',
         "lab.toml:4: fleets.web.run[0]: '~nobody-of-this-name/x': "),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nplaybook = ""', "lab.toml:4: "
         "fleets.web.playbook: must be a path"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nvalues_file = "~nobody-of-this-name/x"',
         "lab.toml:4: fleets.web.values_file: '~nobody-of-this-name/x': "),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nttl = "0s"', "lab.toml:4: fleets.web.ttl: "
         "ttl out of range: 0 s"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nttl = "-4h"', "lab.toml:4: fleets.web.ttl: "
         "not a duration: '-4h'"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nttl = "5200w"', "lab.toml:4: "
         "fleets.web.ttl: ttl out of range"),
        ('name = "a"\n[fleets.web]\ntemplate = "t1"\nowner = "a b"', "lab.toml:4: "
         "fleets.web.owner: not an owner's name: 'a b'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_line_and_key(shop, lab, text, said):
    with pytest.raises(InvalidRequest) as caught:
        shop(text)
    assert str(caught.value).startswith(f"{lab.folder}/{said}")
    assert "\n" not in str(caught.value)


def test_a_long_list_is_read_in_the_time_of_its_length(shop, lab, monkeypatch):
    parsed = []
    monkeypatch.setattr(tomllib, "loads", lambda t, f=tomllib.loads: parsed.append(len(t)) or f(t))
    after = "\n".join(['  "web", # [' + "]" * 9] * 2000)
    with pytest.raises(InvalidRequest, match=r"lab.toml:2006: fleets.web.count: "):
        shop(f'name = "a"\n[fleets.web]\nafter = [\n{after}\n]\ntemplate = "t1"\ncount = -1')
    assert sum(parsed) < 4 * len(after)


def test_names_of_files_are_shown_in_one_line(shop):
    with pytest.raises(NotFound) as caught:
        shop('name = "a"\n[fleets.web]\ntemplate = "t1"\nrun = ["a\\nb.sh"]')
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["run = ['gone.sh']", "playbook = 'gone.yml'",
                                 "values_file = 'gone.csv'"])  # fmt: skip
def test_files_that_are_missing(shop, key):
    with pytest.raises(NotFound, match=r"lab.toml:4: fleets\.web\..*/gone\.\w+ doesn't exist"):
        shop(f'name = "a"\n[fleets.web]\ntemplate = "t1"\n{key}')


def test_a_file_that_is_missing(lab):
    with pytest.raises(NotFound, match="doesn't exist"):
        read_lab(lab.folder / "lab.toml")


@pytest.mark.parametrize("name", ["lab.toml", "setup.sh"])
def test_what_others_could_have_written_is_refused(shop, lab, name):
    (lab.folder / "setup.sh").write_text("true")
    text = 'name = "a"\n[fleets.web]\ntemplate = "t1"\nrun = ["setup.sh"]'
    shop(text)
    (lab.folder / name).chmod(0o666)
    with pytest.raises(InvalidRequest, match=f"{name}.*writ"):
        read_lab(lab.folder / "lab.toml")


def test_lines_of_keys():
    text = (
        'a = 1\n\n[[x]] # one\nb = [\n  {c = 1},\n]\n[[x]]\nb = """\nz = 1\n"""\n["x y".z]\nq=1\n'
    )
    assert key_lines(text) == {
        "a": 1,
        "x": 3,
        "x[0]": 3,
        "x[0].b": 4,
        "x[0].b[0]": 4,
        "x[0].b[0].c": 4,
        "x[1]": 7,
        "x[1].b": 8,
        "x y": 11,
        "x y.z": 11,
        "x y.z.q": 12,
    }


def test_levels(shop):
    found = shop('name = "a"\n' + "".join(
        f'[fleets.{name}]\ntemplate = "t1"\nafter = {after}\n'
        for name, after in {"a": ["c"], "b": [], "c": [], "d": ["a", "b"]}.items()
    ))  # fmt: skip
    assert found.levels() == (("b", "c"), ("a",), ("d",))


def test_the_example_is_right(tmp_path, run):
    code, out, _ = run("lab", "example")
    assert (code, out) == (0, EXAMPLE)
    (tmp_path / "lab.toml").write_text(out)
    assert list(read_lab(tmp_path / "lab.toml").fleets) == ["shop-db", "shop-web"]


# --- apply and diff -----------------------------------------------------------------------------


def test_applied_twice_nothing_changes(shop, lab):
    before = lab.engine.diff_lab(shop())
    assert [(c.action, c.name) for c in before] == [
        *(("create", f"web-{n}") for n in (1, 2, 3)),
        *(("create", f"db-{n}") for n in (1, 2)),
    ]
    first = lab.engine.apply_lab(shop())
    assert first.changes == before
    fleets = [r.plan.clones[0].labels.fleet for r in first.results]
    assert fleets == ["db", "db", "web", "web"]
    assert {c.labels.lab for c in lab.engine.list()} == {"shop"}
    assert {c.state for c in lab.engine.list()} == {State.RUNNING}
    assert lab.engine.diff_lab(shop()) == ()
    again = lab.engine.apply_lab(shop(), prune=True, recreate=True, provision=True)
    assert (again.changes, again.left) == ((), ())
    assert all(not result.changed for r in again.results for result in r.results)


def test_a_dry_run_changes_nothing(shop, lab):
    done = lab.engine.apply_lab(shop(), dry_run=True)
    assert len(done.changes) == 5
    assert names(lab) == []


def test_a_count_adds_and_with_prune_removes(shop, lab):
    lab.engine.apply_lab(shop())
    smaller = shop(SHOP.replace("count = 3", "count = 1").replace("count = 2", "count = 4"))
    done = lab.engine.apply_lab(smaller)
    assert changes(done.changes) == [("create", "db-3", ""), ("create", "db-4", "")]
    assert changes(done.left) == [
        ("remove", "web-2", "--prune"),
        ("remove", "web-3", "--prune"),
    ]
    assert len(names(lab)) == 7
    lab.engine.apply_lab(smaller, prune=True)
    assert names(lab) == ["db-1", "db-2", "db-3", "db-4", "web-1"]
    assert lab.engine.diff_lab(smaller) == ()


def test_a_count_of_none_and_a_fleet_that_left_the_file(shop, lab):
    lab.engine.create("other", "t1", count=1)
    lab.engine.apply_lab(shop())
    empty = shop('name = "shop"\n[fleets.db]\ntemplate = "t1"\ncount = 0')
    assert changes(lab.engine.diff_lab(empty)) == [
        *(("remove", f"db-{n}", "--prune") for n in (1, 2)),
        *(("remove", f"web-{n}", "--prune") for n in (1, 2, 3)),
    ]
    lab.engine.apply_lab(empty, prune=True)
    assert names(lab) == ["other-1"]


def test_gaps_are_filled_and_what_is_incomplete_is_completed(shop, lab):
    lab.engine.apply_lab(shop())
    lab.engine.delete("web-2")
    lab.machines.machines.pop("db-1")
    lab.engine.stop("web-3", kill=True)
    assert [(c.action, c.name, c.why) for c in lab.engine.diff_lab(shop())] == [
        ("start", "web-3", "stopped"),
        ("create", "web-2", ""),
        ("complete", "db-1", "allocated"),
    ]
    lab.engine.apply_lab(shop())
    assert lab.engine.diff_lab(shop()) == ()


def test_a_changed_template_is_shown_and_replaced_only_on_demand(shop, lab):
    lab.engine.apply_lab(shop())
    before = {clone.name: clone.labels.run for clone in lab.engine.list()}
    lab.template("t1", f'{TEMPLATE}[values]\nrole = "new"\n')
    found = lab.engine.diff_lab(shop())
    assert len(found) == 5
    assert {(c.action, c.option, c.why) for c in found} == {
        ("replace", "--recreate", "template t1 has changed: values")
    }
    left = lab.engine.apply_lab(shop())
    assert (left.changes, len(left.left)) == ((), 5)
    assert {clone.name: clone.labels.run for clone in lab.engine.list()} == before
    lab.engine.apply_lab(shop(), recreate=True)
    after = {clone.name: clone.labels.run for clone in lab.engine.list()}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert lab.engine.diff_lab(shop()) == ()


def test_another_template_keeps_a_fleet_from_growing_until_it_is_recreated(shop, lab):
    lab.engine.apply_lab(shop())
    other = shop(SHOP.replace('"t1"\ncount = 3', '"t2"\ncount = 4'))
    found = lab.engine.diff_lab(other)
    assert changes(found) == [
        *(("replace", f"web-{n}", "--recreate") for n in (1, 2, 3)),
        ("create", "web-4", "--recreate"),
    ]
    assert lab.engine.apply_lab(other).changes == ()
    lab.engine.apply_lab(other, recreate=True)
    assert {c.template for c in lab.engine.list("web")} == {"t2"}
    assert lab.engine.diff_lab(other) == ()


def test_values_and_sizes(shop, lab):
    table = '[fleets.web]\ntemplate = "t1"\ncount = 2\nvalues = { role = "a" }\n'
    first = shop(f'name = "shop"\n{table}[fleets.web.clones.2]\nrole = "b"\nmemory = "300MiB"\n')
    lab.engine.apply_lab(first)
    assert lab.engine.diff_lab(first) == ()
    records = [lab.engine._host.records.find(f"web-{n}").values for n in (1, 2)]
    assert records == [{"role": "a"}, {"role": "b", "memory": "300MiB"}]
    changed = shop(f'name = "shop"\n{table}[fleets.web.clones.2]\nrole = "c"\nmemory = "300MiB"\n')
    assert [(c.action, c.name, c.why) for c in lab.engine.diff_lab(changed)] == [
        ("replace", "web-2", "values: role")
    ]
    lab.engine.apply_lab(changed, recreate=True)
    assert lab.engine.diff_lab(changed) == ()


def test_a_replaced_clone_gets_the_lowest_free_number(shop, lab):
    table = 'name = "shop"\n[fleets.web]\ntemplate = "t1"\ncount = 2\nvalues = { role = "a" }\n'
    lab.engine.apply_lab(shop(table.replace("count = 2", "count = 3")))
    lab.engine.delete("web-2")
    other = shop(table.replace('"a"', '"b"'))
    assert changes(lab.engine.diff_lab(other)) == [
        ("replace", "web-1", "--recreate"),
        ("replace", "web-3", "--recreate"),
    ]
    lab.engine.apply_lab(other, recreate=True)
    assert names(lab) == ["web-1", "web-2"]
    assert lab.engine.diff_lab(other) == ()


def test_another_network_replaces_the_card(shop, lab):
    lab.engine.apply_lab(shop())
    other = shop(SHOP.replace("count = 3", 'count = 3\nnetwork = "bridge:br0"'))
    assert {(c.fleet, c.action, c.why) for c in lab.engine.diff_lab(other)} == {
        ("web", "replace", "template t1 has changed: nics")
    }
    lab.engine.apply_lab(other, recreate=True)
    assert {c.domain.networks for c in lab.engine.list("web")} == {("bridge:br0",)}
    assert lab.engine.diff_lab(other) == ()


def test_a_size_changes_in_place(shop, lab):
    lab.engine.apply_lab(shop())
    larger = shop(SHOP.replace("count = 3", 'count = 3\nmemory = "300MiB"\nvcpus = 2'))
    assert {(c.action, c.why, c.option) for c in lab.engine.diff_lab(larger)} == {
        ("resize", "memory 256 MiB, not 300 MiB, vcpus 1, not 2", "")
    }
    lab.engine.apply_lab(larger)
    assert lab.engine.diff_lab(larger) == ()
    assert {c.domain.memory for c in lab.engine.list("web")} == {300 * 1024**2}
    assert {c.domain.memory for c in lab.engine.list("db")} == {256 * 1024**2}


def test_a_disk_that_would_shrink_is_replaced_only_on_demand(shop, lab):
    with_disk = SHOP.replace("count = 3", 'count = 3\ndisk_size = "4MiB"')
    lab.engine.apply_lab(shop(with_disk))
    found = lab.engine.diff_lab(shop(with_disk.replace("4MiB", "2MiB")))
    assert {(c.action, c.why) for c in found} == {("replace", "disk_size 4 MiB, not 2 MiB")}
    assert {c.action for c in lab.engine.diff_lab(shop(with_disk.replace("4MiB", "8MiB")))} == {
        "resize"
    }


def test_not_started(shop, lab):
    still = shop('name = "shop"\n[fleets.web]\ntemplate = "t1"\nstart = false')
    done = lab.engine.apply_lab(still)
    assert [r.plan.action for r in done.results] == ["create"]
    assert {c.state for c in lab.engine.list()} == {State.STOPPED}
    lab.engine.start("web")
    assert lab.engine.diff_lab(still) == ()  # what somebody started is left alone


def test_what_is_not_the_labs_is_never_touched(shop, lab):
    lab.engine.create("web", "t1", count=1)
    for call in (lab.engine.diff_lab, lab.engine.apply_lab):
        with pytest.raises(
            Conflict, match=r"lab.toml:4: fleets.web: web-1 is there and is part of no lab"
        ):
            call(shop())
    assert names(lab) == ["web-1"]
    other = shop('name = "other"\n[fleets.db]\ntemplate = "t1"')
    lab.engine.apply_lab(other)
    lab.engine.delete("web")
    with pytest.raises(Conflict, match="part of lab 'other'"):
        lab.engine.apply_lab(shop())
    assert lab.engine.lab_parts(shop()) == ((), ())


def test_a_clone_that_is_added_by_hand_is_of_its_fleets_lab(shop, lab):
    lab.engine.apply_lab(shop())
    lab.engine.create("web", "t1", add=1)
    assert changes(lab.engine.diff_lab(shop())) == [("remove", "web-4", "--prune")]
    with pytest.raises(Conflict, match="part of lab 'shop', not of lab 'x'"):
        lab.engine.create("web", "t1", count=9, lab="x")


# --- before anything is made --------------------------------------------------------------------


def test_all_fleets_together_must_fit(shop, lab, monkeypatch):
    driver = lab.machines
    resources = attrs.evolve(driver.resources(), memory_free=1024**3, memory_overhead=0)
    monkeypatch.setattr(driver, "resources", lambda: resources)
    three = SHOP.replace("count = 2", "count = 1")  # 4 x 256 MiB
    lab.engine.apply_lab(shop(three), dry_run=True)
    with pytest.raises(NotEnoughResources) as caught:
        lab.engine.apply_lab(shop())
    assert "lab.toml:6: fleets.web.count: " in caught.value.message
    assert "2 would fit" in caught.value.hint
    assert names(lab) == []


def test_what_is_pruned_makes_room(shop, lab, monkeypatch):
    lab.engine.apply_lab(shop())
    resources = attrs.evolve(lab.machines.resources(), memory_free=1024**2, memory_overhead=0)
    monkeypatch.setattr(lab.machines, "resources", lambda: resources)
    exchanged = shop(SHOP.replace("count = 2", "count = 4").replace("count = 3", "count = 1"))
    with pytest.raises(NotEnoughResources, match=r"fleets.db.count"):
        lab.engine.apply_lab(exchanged)
    lab.engine.apply_lab(exchanged, prune=True, dry_run=True)


def test_pools_must_have_room_for_all_fleets(shop, lab, monkeypatch):
    monkeypatch.setattr(
        lab.pool, "capacity", lambda: Capacity(total=10**9, free=10**9, volumes_free=4)
    )
    with pytest.raises(NotEnoughResources, match=r"fleets.web.count: 3 clones have 3 volumes"):
        lab.engine.apply_lab(shop())
    assert names(lab) == []


def test_an_unknown_template(shop, lab):
    with pytest.raises(NotFound) as caught:
        lab.engine.apply_lab(shop(SHOP.replace('"t1"\ncount = 2', '"t3"\ncount = 2')))
    assert "lab.toml:10: fleets.db.template: unknown template 't3'" in str(caught.value)
    assert names(lab) == []


# --- failures -----------------------------------------------------------------------------------


def test_what_needs_a_fleet_that_failed_is_not_made(shop, lab):
    text = SHOP + '[fleets.alone]\ntemplate = "t1"\n'
    lab.machines.fail["start", "db-2"] = VmclonerError("no")
    with pytest.raises(PartialFailure) as caught:
        lab.engine.apply_lab(shop(text))
    assert [name for name, _ in caught.value.failures] == ["db-2"]
    assert "2 of 3 fleets not as the file says (db, web)" in caught.value.message
    assert names(lab) == ["alone-1", "db-1", "db-2"]
    lab.machines.fail.clear()
    lab.engine.apply_lab(shop(text))
    assert lab.engine.diff_lab(shop(text)) == ()


def test_a_cancelled_apply_ends_and_is_continued(shop, lab):
    from vmcloner_core.errors import Interrupted

    with pytest.raises(Interrupted):
        lab.engine.apply_lab(shop(), on_run=lambda _result: lab.engine.cancel())
    assert names(lab) == ["db-1", "db-2"]
    lab.engine.apply_lab(shop())
    assert lab.engine.diff_lab(shop()) == ()


def test_a_backend_that_the_lab_does_not_use_may_be_unreadable(shop, lab, monkeypatch):
    from vmcloner_core.errors import BackendError
    from vmcloner_core.survey import Unseen

    lab.engine.apply_lab(shop())
    survey = lab.engine._host.survey

    def without(name):
        gone = Unseen(host="local", kind="storage", name=name, error=BackendError("off"))
        monkeypatch.setattr(
            lab.engine._host, "survey", lambda: attrs.evolve(survey(), unseen=(gone,))
        )

    without("other")
    assert lab.engine.diff_lab(shop()) == ()
    lab.engine.apply_lab(shop())
    without("reference")
    for call in (lab.engine.diff_lab, lab.engine.apply_lab, lab.engine.delete_lab):
        with pytest.raises(BackendError, match="lab shop: storage 'reference' could not be read"):
            call(shop())
    assert len(survey().clones) == 5


# --- the commands -------------------------------------------------------------------------------


def test_the_commands(shop, lab, run):
    shop()
    assert run("diff", "lab.toml")[0] == 12
    code, out, err = run("apply", "lab.toml")
    assert code == 0, err
    assert "create  clone  web-[1-3]" in out
    assert "5 clones created" in err
    assert run("diff", "lab.toml", "-f", "json") == (0, "[]\n", "vmcloner: nothing differs\n")
    shop(SHOP.replace("count = 3", "count = 1"))
    code, out, err = run("diff", "lab.toml", "-f", "json")
    assert code == 12
    assert json.loads(out)[0] == {
        "action": "remove",
        "kind": "clone",
        "name": "web-2",
        "why": "count is 1",
        "option": "--prune",
    }
    code, _, err = run("apply", "lab.toml")
    assert (code, "left without --prune: 2 clones to be removed" in err) == (0, True)
    code, _, err = run("apply", "lab.toml", "--prune")
    assert (code, "use --yes" in err) == (2, True)
    assert run("apply", "lab.toml", "--prune", "--yes")[0] == 0
    assert names(lab) == ["db-1", "db-2", "web-1"]
    code, out, _ = run("delete", "--lab", "lab.toml", "--dry-run", "-f", "json")
    assert [row["name"] for row in json.loads(out)] == ["db-1", "db-2", "web-1"]
    assert run("delete", "--lab", "lab.toml", "web", "--yes")[0] == 2
    assert run("delete", "--lab", "lab.toml", "--yes")[0] == 0
    assert names(lab) == []
    assert run("delete", "--lab", "lab.toml", "--yes")[0] == 4
    assert run("delete", "--lab", "lab.toml", "--yes", "--missing-ok")[0] == 0


def test_each_kind_of_error_has_its_exit_code(shop, lab, run):
    (lab.folder / "lab.toml").write_text('name = "a"\nx = 1')
    assert run("diff", "lab.toml")[0] == 3
    assert run("apply", "gone.toml")[0] == 4
    shop(SHOP.replace('"t1"', '"t9"'))
    assert run("apply", "lab.toml")[0] == 4


def test_other_commands_do_not_import_labs():
    import subprocess
    import sys

    code = (
        "import sys; import vmcloner_core.engine, vmcloner_core.cli.create, "
        "vmcloner_core.cli.listing, vmcloner_core.steps; "
        "sys.exit(any(n.startswith('vmcloner_core.labs') or n in ('vmcloner_core.scripts', "
        "'vmcloner_core.ansible') for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ)


def test_a_lab_is_a_value():
    assert Lab(name="x") == Lab(name="x", lines={"name": 1})


# --- networks and images ------------------------------------------------------------------------


NET = 'name = "shop"\n[networks.net]\ncount = 4\n'
ON_NET = NET + '[fleets.web]\ntemplate = "t1"\ncount = 3\nnetwork = "net"\n'


@pytest.fixture
def networks(lab):
    lab.machines.networks = Networks()
    return lab.machines.networks


def test_a_network_of_the_lab(shop, lab, networks):
    lab.engine.apply_lab(shop(ON_NET))
    assert networks.there["net"].lab == "shop"
    assert {c.domain.networks for c in lab.engine.list()} == {("net",)}
    assert lab.engine.diff_lab(shop(ON_NET)) == ()
    wider = ON_NET.replace("count = 4", "count = 9")
    assert [(c.action, c.name) for c in lab.engine.diff_lab(shop(wider))] == [("change", "net")]
    lab.engine.delete_lab(shop(ON_NET))
    assert (names(lab), networks.there) == ([], {})


def test_a_network_that_left_the_file_goes_with_prune_after_its_clones(shop, lab, networks):
    lab.engine.apply_lab(shop(ON_NET))
    empty = shop('name = "shop"')
    assert [(c.kind, c.name, c.option) for c in lab.engine.diff_lab(empty)][-1] == (
        "network",
        "net",
        "--prune",
    )
    lab.engine.apply_lab(empty)
    assert len(names(lab)) == 3
    lab.engine.apply_lab(empty, prune=True)
    assert (names(lab), networks.there) == ([], {})


def test_a_network_of_no_lab_is_used_and_stays(shop, lab, networks):
    lab.engine.prepare_network(NetworkRequest(name="net", count=4))
    lab.engine.apply_lab(shop(ON_NET))
    lab.engine.apply_lab(shop('name = "shop"'), prune=True)
    lab.engine.delete_lab(shop(ON_NET))
    assert list(networks.there) == ["net"]


def test_a_network_must_have_addresses_for_all_fleets_before_it_is_made(shop, lab, networks):
    text = ON_NET + '[fleets.db]\ntemplate = "t1"\ncount = 2\nnetwork = "net"\n'
    with pytest.raises(NotEnoughResources, match=r"fleets.db.count: network 'net' has 4") as caught:
        lab.engine.apply_lab(shop(text))
    assert "1 clone would fit" in caught.value.hint
    assert (names(lab), networks.there) == ([], {})


def test_a_network_that_nobody_makes(shop, lab, networks):
    with pytest.raises(NotFound, match=r"fleets.web: .* no network 'other'"):
        lab.engine.apply_lab(shop(ON_NET.replace('network = "net"', 'network = "other"')))
    assert networks.there == {}


def test_an_image_is_built_first(shop, lab):
    lab.template("t3", TEMPLATE.replace('path = "image.raw"', 'builder = "empty"'))
    text = 'name = "shop"\n[fleets.web]\ntemplate = "t3"\n[images.t3]\n'
    assert [(c.action, c.kind, c.name) for c in lab.engine.diff_lab(shop(text))] == [
        ("build", "image", "t3"),
        ("create", "clone", "web-1"),
    ]
    lab.engine.apply_lab(shop(text))
    assert lab.engine.diff_lab(shop(text)) == ()


def test_a_template_that_an_image_will_write_is_planned_with(shop, lab):
    built = '[images.ci]\nextends = "t1"\noptions = { suite = "bookworm" }\n'
    text = f'name = "shop"\n{built}[fleets.web]\ntemplate = "ci"\n'
    done = lab.engine.apply_lab(shop(text), dry_run=True)
    assert [(c.action, c.name) for c in done.changes] == [("build", "ci"), ("create", "web-1")]
    with pytest.raises(InvalidRequest, match=r"lab.toml:2: images.ci: .*suite"):
        lab.engine.diff_lab(shop(text.replace("bookworm", "no such!")))


def test_an_image_of_no_template(shop, lab):
    with pytest.raises(NotFound, match=r"lab.toml:2: images.t9: unknown template"):
        lab.engine.diff_lab(shop('name = "shop"\n[images.t9]\n'))


def test_an_image_to_pull(shop, lab):
    remote = 'url = "https://127.0.0.1:1/i.raw"\nchecksums = "https://127.0.0.1:1/SUMS"'
    lab.template("t3", TEMPLATE.replace('path = "image.raw"', remote))
    text = 'name = "shop"\n[images.t3]\npull = true\n[fleets.web]\ntemplate = "t3"\n'
    done = lab.engine.apply_lab(shop(text), dry_run=True)
    assert [(c.action, c.name) for c in done.changes] == [("pull", "t3"), ("create", "web-1")]
    with pytest.raises(NotFound, match=r"fleets.web: the image of template t3 is not here"):
        lab.engine.apply_lab(shop('name = "shop"\n[fleets.web]\ntemplate = "t3"\n'))


# --- exactly what diff says ---------------------------------------------------------------------


def states(lab, fleet="web"):
    return {clone.name: clone.state.value for clone in lab.engine.list(fleet)}


@pytest.mark.parametrize(
    ("edit", "action"),
    [
        (("count = 3", "count = 2"), "remove"),
        (("count = 3", "count = 3\nclones.3 = { role = 'x' }"), "replace"),
    ],
)
def test_what_lacks_its_option_is_not_started_nor_waited_for(shop, lab, edit, action):
    lab.engine.apply_lab(shop())
    for name in ("web-2", "web-3"):
        lab.engine.stop(name, kill=True)
    edited = shop(SHOP.replace(*edit))
    done = lab.engine.apply_lab(edited)
    assert changes(done.changes) == [("start", "web-2", "")]
    assert [(c.action, c.name) for c in done.left] == [(action, "web-3")]
    assert states(lab) == {"web-1": "running", "web-2": "running", "web-3": "stopped"}
    assert lab.engine.diff_lab(edited) == done.left


def test_a_clone_that_became_somebody_elses_is_not_removed(shop, lab):
    lab.engine.apply_lab(shop())

    def meanwhile(_todo, _left):  # while the user is asked
        lab.engine.delete("web")
        lab.engine.create("web", "t1", count=3)

    with pytest.raises(Conflict, match="fleet 'web' is part of no lab, not of lab 'shop'"):
        lab.engine.apply_lab(
            shop(SHOP.replace("count = 3", "count = 1")), prune=True, on_changes=meanwhile
        )
    assert names(lab) == ["db-1", "db-2", "web-1", "web-2", "web-3"]


@pytest.mark.parametrize("action", ["delete", "wait", "provision", "set"])
def test_requests_of_a_lab_are_for_its_clones_only(lab, action):
    lab.engine.create("web", "t1", count=1)
    more = {"sizes": Sizes(vcpus=2)} if action == "set" else {}
    with pytest.raises(Conflict, match="is part of no lab"):
        lab.engine.run(TargetRequest(action=action, targets=("web-1",), lab="shop", **more))
    assert names(lab) == ["web-1"]


def test_delete_asks_about_the_labs_clones_only(shop, lab, run, monkeypatch):
    lab.engine.apply_lab(shop())
    parts = lab.engine.lab_parts(shop())
    lab.engine.delete("web")
    lab.engine.create("web", "t1", count=3)
    monkeypatch.setattr(lab.engine, "lab_parts", lambda _lab: parts)
    assert run("delete", "--lab", "lab.toml", "--yes")[0] == 5
    assert len(names(lab)) == 5


def test_a_dry_run_does_not_wait_for_another_apply(shop, lab):
    with lab.engine._host.hold(["lab/shop"], lambda: False):
        waited = []
        lab.engine._host.hold = lambda names, _cancelled: waited.append(names)
        try:
            assert len(lab.engine.apply_lab(shop(), dry_run=True).changes) == 5
        finally:
            del lab.engine._host.hold
    assert waited == []


def test_larger_memory_counts_before_anything_is_made(shop, lab, monkeypatch):
    lab.engine.apply_lab(shop())
    lab.engine.stop("web", kill=True)
    resources = attrs.evolve(lab.machines.resources(), memory_free=2 * 1024**3, memory_overhead=0)
    monkeypatch.setattr(lab.machines, "resources", lambda: resources)
    edited = SHOP.replace("count = 2", "count = 4").replace("count = 3", 'count = 3\nmemory="1GiB"')
    with pytest.raises(NotEnoughResources, match=r"fleets.web.count"):
        lab.engine.apply_lab(shop(edited))
    assert len(names(lab)) == 5
    lab.engine.apply_lab(shop(edited.replace("1GiB", "300MiB")))


# --- owners and leases --------------------------------------------------------------------------


def limited(lab, **limits):
    settings = lab.engine.settings
    settings = attrs.evolve(settings, limits=attrs.evolve(settings.limits, **limits))
    return Engine(settings, lab.engine.plugins, lab.engine._host)


@pytest.mark.parametrize(
    "limits", [{"max_clones_per_owner": 4}, {"max_memory_per_owner": 4 * 256 * 1024**2}]
)
def test_limits_of_an_owner_are_for_all_fleets_together(shop, lab, limits):
    with pytest.raises(NotEnoughResources, match=r"lab.toml:6: fleets.web.count: .*_per_owner"):
        limited(lab, **limits).apply_lab(shop())
    assert names(lab) == []


def test_what_is_pruned_does_not_count_for_its_owner(shop, lab):
    lab.engine.apply_lab(shop())
    edited = shop(SHOP.replace("count = 2", "count = 4").replace("count = 3", "count = 1"))
    engine = limited(lab, max_clones_per_owner=5)
    with pytest.raises(NotEnoughResources):
        engine.apply_lab(edited)
    engine.apply_lab(edited, prune=True)
    assert len(names(lab)) == 5


def test_fleets_have_leases_and_owners(shop, lab):
    text = SHOP.replace("count = 2", 'count = 2\nttl = "4h"\nowner = "alice"')
    text = text.replace("count = 3", 'count = 3\nttl = "never"')
    lab.engine.apply_lab(shop(text))
    found = {s.clone.name: (s.clone.labels.owner, s.lease) for s in lab.engine.leases(
        lab.engine.list()
    )}  # fmt: skip
    assert {name for name, (owner, _) in found.items() if owner == "alice"} == {"db-1", "db-2"}
    assert {name: lease and lease.ttl for name, (_, lease) in found.items()} == {
        **{f"db-{n}": 4 * 3600 for n in (1, 2)},
        **{f"web-{n}": None for n in (1, 2, 3)},
    }
    assert lab.engine.diff_lab(shop(text.replace("4h", "8h").replace("alice", "bob"))) == ()
    engine = limited(lab, max_clones_per_owner=2)
    with pytest.raises(NotEnoughResources, match="alice has 2 clones"):
        engine.apply_lab(shop(text.replace("count = 2", "count = 3")))
    engine.apply_lab(shop(text.replace("count = 2", "count = 3").replace("alice", "bob")))


# --- networks in use ----------------------------------------------------------------------------


def test_a_network_that_others_are_on_is_not_removed(shop, lab, networks):
    lab.engine.apply_lab(shop(ON_NET))
    lab.engine.create("other", "t1", count=1, network="net")
    before = names(lab)
    for call in (
        lambda: lab.engine.apply_lab(shop('name = "shop"'), prune=True),
        lambda: lab.engine.delete_lab(shop(ON_NET)),
        lambda: lab.engine.lab_parts(shop(ON_NET)),
    ):
        with pytest.raises(Conflict, match="network net can't be removed: other-1 would lose it"):
            call()
    assert (names(lab), list(networks.there)) == (before, ["net"])
    lab.engine.delete("other")
    lab.engine.delete_lab(shop(ON_NET))
    assert networks.there == {}


def test_a_network_that_left_the_file_but_is_used_by_its_fleets_stays(shop, lab, networks):
    lab.engine.apply_lab(shop(ON_NET))
    without = shop(ON_NET.replace("[networks.net]\ncount = 4\n", "").replace("= 3", "= 4"))
    with pytest.raises(Conflict, match=r"net can't be removed: web-\[1-4\] would lose it"):
        lab.engine.apply_lab(without, prune=True)
    assert (len(names(lab)), list(networks.there)) == (3, ["net"])


# --- networks of one name -----------------------------------------------------------------------


class Kinds(Networks):
    """Networks where a bridge and another may have the same name, as on a real host."""

    def __init__(self):
        super().__init__()
        self._kinds = {True: Networks(), False: Networks()}

    def inspect(self):
        return tuple(n for kind in self._kinds.values() for n in kind.inspect())

    def prepare(self, request):
        return self._kinds[request.bridge].prepare(request)

    def remove(self, request):
        return self._kinds[request.bridge].remove(request)


def test_a_network_that_becomes_a_bridge_keeps_its_bridge(shop, lab):
    lab.machines.networks = Kinds()
    lab.engine.apply_lab(shop(NET))
    bridge = shop(f"{NET}bridge = true\n")
    lab.engine.apply_lab(bridge, prune=True)
    assert [n.key for n in lab.machines.networks.inspect()] == ["bridge:net"]
    assert lab.engine.diff_lab(bridge) == ()
