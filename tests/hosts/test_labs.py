"""Labs on several hosts: compared, applied and deleted by their controller."""

import shutil
import textwrap

import attrs
import pytest

from tests.networks import Networks
from vmcloner_core.catalog import Catalog, shipped
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
)
from vmcloner_core.hosts.draining import Why
from vmcloner_core.labs import Change, read_lab
from vmcloner_core.labs.compare import Comparer
from vmcloner_core.model import State
from vmcloner_core.placing import Where
from vmcloner_core.settings import HostSettings

SHOP = """
name = "shop"

[fleets.web]
template = "t1"
count = 6
after = ["db"]

[fleets.db]
template = "t1"
count = 2
"""
NET = """
name = "shop"
[networks.net]
count = 4
[fleets.web]
template = "t1"
count = 3
network = "net"
"""


@pytest.fixture
def shop(tmp_path):
    """Return a function that writes a lab's file and reads it."""

    def write(text=SHOP):
        file = tmp_path / "lab.toml"
        file.write_text(textwrap.dedent(text))
        return read_lab(file)

    return write


@pytest.fixture
def networks(hosts):
    for site in hosts.sites.values():
        site.machines.networks = Networks()
    return {name: site.machines.networks.there for name, site in hosts.sites.items()}


def placed(controller, fleet):
    return [clone.host for clone in controller.list() if clone.fleet == fleet]


def changes(found):
    return [(c.action, c.name, c.option) for c in found]


def test_a_lab_is_spread_over_the_hosts(shop, hosts):
    all_hosts = hosts.controller()
    told = []
    result = all_hosts.apply_lab(shop(), on_run=told.append)
    assert {host: placed(all_hosts, "web").count(host) for host in hosts.sites} == {
        "h1": 2,
        "h2": 2,
        "h3": 2,
    }
    clones = all_hosts.list()
    assert {clone.labels.lab for clone in clones} == {"shop"}
    assert {clone.state for clone in clones} == {State.RUNNING}
    assert len({clone.name for clone in clones}) == len({clone.mac for clone in clones}) == 8
    assert result.results == tuple(told)
    order = [run.plan.clones[0].labels.fleet for run in told]
    assert order.index("db") < order.index("web")
    assert all_hosts.diff_lab(shop()) == ()
    assert all_hosts.apply_lab(shop()).changes == ()


def test_what_differs_is_done_where_it_is(shop, hosts):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop())
    all_hosts.stop("web-[1-2]", kill=True)
    gone = hosts.sites[next(c.host for c in all_hosts.list() if c.name == "web-3")]
    gone.engine.delete("web-3")
    bigger = shop(SHOP.replace("count = 2", "count = 2\nmemory = '128MiB'"))
    assert sorted(changes(all_hosts.diff_lab(bigger))) == [
        ("create", "web-3", ""),
        ("resize", "db-1", ""),
        ("resize", "db-2", ""),
        ("start", "web-1", ""),
        ("start", "web-2", ""),
    ]
    before = {clone.name: clone.host for clone in all_hosts.list()}
    all_hosts.stop("db", kill=True)
    all_hosts.apply_lab(bigger)
    after = {clone.name: clone.host for clone in all_hosts.list()}
    assert after == {**before, "web-3": after["web-3"]}
    assert {clone.state for clone in all_hosts.list()} == {State.RUNNING}
    assert all_hosts.diff_lab(bigger) == ()


def test_a_partial_clone_is_completed_on_its_host(shop, hosts):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop())
    half = next(c for c in all_hosts.list() if c.name == "web-4")
    site = hosts.sites[half.host]
    site.engine.stop("web-4", kill=True)
    for outcome in site.machines.undefine(["web-4"]):
        outcome.unwrap()
    assert changes(all_hosts.diff_lab(shop())) == [("complete", "web-4", "")]
    all_hosts.apply_lab(shop())
    again = next(c for c in all_hosts.list() if c.name == "web-4")
    assert (again.host, again.state) == (half.host, State.RUNNING)


def test_smaller_and_another_template(shop, hosts):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop())
    fewer = shop(SHOP.replace("count = 6", "count = 4"))
    assert changes(all_hosts.diff_lab(fewer)) == [
        ("remove", "web-5", "--prune"),
        ("remove", "web-6", "--prune"),
    ]
    all_hosts.apply_lab(fewer, prune=True)
    assert len(placed(all_hosts, "web")) == 4
    template = hosts.folder / "config/vmcloner/templates/t1.toml"
    template.write_text(template.read_text() + "[values]\nrole = 'x'\n")
    found = hosts.controller().diff_lab(fewer)
    assert {(c.action, c.option) for c in found} == {("replace", "--recreate")}
    assert len(found) == 6
    all_hosts.apply_lab(fewer, recreate=True)
    assert all_hosts.diff_lab(fewer) == ()


def test_placement_is_a_key_of_the_file(shop, hosts):
    all_hosts = hosts.controller()
    text = SHOP.replace("count = 6", "count = 3\nhosts = 'h[2-3]'\nper_host = 2\nplace = 'pack'")
    all_hosts.apply_lab(shop(text))
    assert placed(all_hosts, "web") == ["h2", "h2", "h3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = '@none'", r"lab.toml:7: fleets.web.hosts: unknown group '@none'"),
        ("hosts = 'h[2-'", r"lab.toml:7: fleets.web.hosts: not hosts"),
        ("hosts = 'h9'", "lab.toml:4: fleets.web: unknown host 'h9'"),
        ("per_host = 1", "lab.toml:4: fleets.web: "),
    ],
)
def test_a_lab_that_is_refused_makes_nothing(shop, hosts, text, said):
    all_hosts = hosts.controller()
    with pytest.raises((InvalidRequest, NotFound, NotEnoughResources), match=said):
        all_hosts.apply_lab(shop(SHOP.replace("after =", f"{text}\nafter =")))
    assert all_hosts.list() == ()


def test_a_wrong_limit_names_its_line(shop):
    with pytest.raises(InvalidRequest, match=r"lab.toml:7: fleets.web.per_host: clones per host"):
        shop(SHOP.replace("after =", "per_host = 0\nafter ="))


def test_one_host_has_nowhere_to_place(shop, hosts):
    lab = shop(SHOP.replace("after =", "hosts = 'h2'\nafter ="))
    engine = hosts.sites["h1"].engine
    with pytest.raises(InvalidRequest, match="no other hosts"):
        engine.apply_lab(lab)
    assert engine.list() == ()


def test_networks_are_made_on_all_hosts_and_removed(shop, hosts, networks):
    all_hosts = hosts.controller()
    found = all_hosts.diff_lab(shop(NET))
    assert [(c.action, c.name, c.why) for c in found if c.kind == "network"] == [
        ("make", "net", "define on h1"),
        ("make", "net", "define on h2"),
        ("make", "net", "define on h3"),
    ]
    all_hosts.apply_lab(shop(NET))
    assert all(list(there) == ["net"] for there in networks.values())
    assert all_hosts.diff_lab(shop(NET)) == ()
    assert all_hosts.lab_parts(shop(NET)) == (("web-1", "web-2", "web-3"), ("net",))
    all_hosts.delete_lab(shop(NET))
    assert all_hosts.list() == ()
    assert not any(networks.values())


def test_a_network_that_a_host_lost_is_made_again_there(shop, hosts, networks):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop(NET))
    networks["h2"].clear()
    assert [c.why for c in all_hosts.diff_lab(shop(NET))] == ["define on h2"]
    all_hosts.apply_lab(shop(NET))
    assert list(networks["h2"]) == ["net"]


def test_a_drained_host_gets_no_network(shop, hosts, networks):
    all_hosts = hosts.controller()
    all_hosts.drained.add({"h3": Why.DRAINED})
    all_hosts.apply_lab(shop(NET))
    assert list(networks["h1"]) == ["net"]
    assert networks["h3"] == {}
    assert "h3" not in placed(all_hosts, "web")


def test_a_network_that_others_use_stays(shop, hosts, networks):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop(NET))
    all_hosts.create("other", "t1", network="net")
    with pytest.raises(Conflict, match="other-1 would lose it"):
        all_hosts.delete_lab(shop(NET))
    assert len(all_hosts.list()) == 4


def test_a_host_that_is_down_refuses(shop, hosts):
    all_hosts = hosts.controller()
    all_hosts.apply_lab(shop())
    hosts.carrier.lose("h2")
    for call in (
        all_hosts.diff_lab,
        all_hosts.apply_lab,
        all_hosts.delete_lab,
        all_hosts.lab_parts,
    ):
        with pytest.raises(BackendError, match=r"lab shop: host.*h2"):
            call(shop())


def test_no_host_is_left_out(shop, hosts):
    with pytest.raises(InvalidRequest, match="--without can't be used"):
        hosts.controller(without=["h2"]).diff_lab(shop())


def test_a_fleet_of_others_is_a_conflict(shop, hosts):
    all_hosts = hosts.controller()
    hosts.sites["h3"].engine.create("db", "t1")
    with pytest.raises(Conflict, match=r"fleets.db: db-1 is there and is part of no lab"):
        all_hosts.apply_lab(shop())
    assert len(all_hosts.list()) == 1


@pytest.mark.parametrize("why", ["no room", "drained"])
def test_nothing_is_deleted_for_clones_that_can_not_be_made(shop, hosts, why):
    all_hosts = hosts.controller()
    text = SHOP.replace("count = 6", "count = 2\nhosts = 'h1'")
    all_hosts.apply_lab(shop(text))
    if why == "drained":
        all_hosts.drained.add({"h1": Why.DRAINED})
    changed = text.replace("hosts = 'h1'", "hosts = 'h1'\nper_host = 1\nvalues = {role = 'x'}")
    with pytest.raises(VmclonerError, match=r"lab.toml:4: fleets.web: "):
        all_hosts.apply_lab(shop(changed), recreate=True)
    assert placed(all_hosts, "web") == ["h1", "h1"]


def test_a_fleet_with_nowhere_to_go_is_noticed_before_another_is_made(shop, hosts):
    all_hosts = hosts.controller()
    all_hosts.drained.add({"h1": Why.DRAINED})
    with pytest.raises(VmclonerError, match=r"fleets\.web: no new clones are placed on h1"):
        all_hosts.apply_lab(shop(SHOP.replace("count = 6", "count = 2\nhosts = 'h1'")))
    assert all_hosts.list() == ()


def test_a_name_on_two_hosts_is_refused(shop, hosts):
    all_hosts = hosts.controller()
    lab = shop(SHOP.replace("count = 6", "count = 2"))
    all_hosts.apply_lab(lab)
    there = next(clone for clone in all_hosts.list() if clone.name == "web-2")
    other = next(name for name in hosts.sites if name != there.host)
    hosts.sites[other].engine.create("web", "t1", indices=(2,), others=False, lab="shop")
    fewer = shop(SHOP.replace("count = 6", "count = 1"))
    for call in (
        lambda: all_hosts.diff_lab(fewer),
        lambda: all_hosts.apply_lab(fewer, prune=True),
        lambda: all_hosts.delete_lab(fewer),
        lambda: all_hosts.delete("web-2"),
    ):
        with pytest.raises(Conflict, match="web-2 is on hosts"):
            call()
    assert len(placed(all_hosts, "web")) == 3


def test_one_of_several_hosts_is_refused(shop, hosts):
    controller = hosts.controller()
    controller.settings = attrs.evolve(
        controller.settings, hosts={"h9": HostSettings(ssh="h9"), **controller.settings.hosts}
    )
    with pytest.raises(InvalidRequest, match=r"--host can't be used with a lab.*h9"):
        controller.diff_lab(shop())


def test_an_image_that_hosts_have_is_not_built_anew(shop, hosts, monkeypatch):
    all_hosts = hosts.controller()
    all_hosts.create("other", "t1", count=3)
    change = Change(action="build", kind="image", name="t1")
    monkeypatch.setattr(Comparer, "_image", lambda *_args: iter([change]))
    text = SHOP + "[images.t1]\npull = true\n"
    with pytest.raises(Conflict, match=r"lab.toml:12: images.t1: host 'h1' has an image of t1"):
        all_hosts.apply_lab(shop(text))
    assert len(all_hosts.list()) == 3


def test_an_earlier_image_that_was_sent_is_replaced_if_no_clone_has_it(shop, hosts, monkeypatch):
    all_hosts = hosts.controller()
    all_hosts.create("other", "t1", count=1, where=Where(hosts=("h1",)))
    for name, site in hosts.sites.items():  # as if it had been sent
        for engine in (site.engine, hosts.carrier._besides[name]._engine):
            local = engine._local
            own = local.host.received
            own.mkdir(exist_ok=True)
            for file in (hosts.folder / "config/vmcloner/templates").iterdir():
                shutil.copy(file, own)
            local.catalog = Catalog(local.host.templates, (shipped(),), received=own)
    change = Change(action="build", kind="image", name="t1")
    monkeypatch.setattr(Comparer, "_image", lambda *_args: iter([change]))
    text = SHOP + "[images.t1]\npull = true\n"
    with pytest.raises(
        Conflict, match=r"images.t1: host 'h1' has .*: other-1 was made of"
    ) as caught:
        all_hosts.apply_lab(shop(text), dry_run=True)
    assert caught.value.hint == "give the image another name in the file, or delete other-1 first"
    all_hosts.delete("other")
    assert all_hosts.apply_lab(shop(text), dry_run=True).changes


def test_a_cancelled_apply_ends_between_its_runs(shop, hosts):
    all_hosts = hosts.controller()
    with pytest.raises(VmclonerError, match="stopped"):
        all_hosts.apply_lab(shop(), on_run=lambda _result: all_hosts.cancel())
    assert placed(all_hosts, "web") == []
    all_hosts.apply_lab(shop())
    assert all_hosts.diff_lab(shop()) == ()


def test_a_dry_run_changes_nothing(shop, hosts):
    all_hosts = hosts.controller()
    assert len(all_hosts.apply_lab(shop(), dry_run=True).changes) == 8
    assert all_hosts.list() == ()
