"""Runs as a whole: lanes of several drivers, ends that are told, backends that can't be read."""

import contextlib
import json
import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core import CreateRequest, Engine
from vmcloner_core.deadlines import answers
from vmcloner_core.drivers import Lane
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotFound,
    PartialFailure,
    VmclonerError,
)
from vmcloner_core.hooks import hookimpl
from vmcloner_core.model import Outcome, State
from vmcloner_core.plan import OnFailure
from vmcloner_core.steps import STEPS
from vmcloner_core.testing.reference import (
    BootPlugin,
    HypervisorPlugin,
    ReferenceHypervisor,
    ReferenceStorage,
    StoragePlugin,
)

SETTINGS = """
[defaults]
hypervisor = "reference"
storage = "reference"
[hosts.local]
state = "{folder}/state"
[hosts.local.hypervisor.second]
driver = "reference"
[hosts.local.storage.other]
driver = "reference"
"""


class Several:
    """A plugin whose backend has a driver for each name."""

    def __init__(self, plugin, driver):
        self.made = {}
        self._descriptor, self._class = plugin, driver

    def _make(self, context, settings):
        return self.made.setdefault(context.name, self._class(context, settings))


class Hypervisors(Several):
    @hookimpl
    def vmcloner_hypervisor_backend(self):
        return attrs.evolve(self._descriptor.vmcloner_hypervisor_backend(), factory=self._make)


class Pools(Several):
    @hookimpl
    def vmcloner_storage_backend(self):
        return attrs.evolve(self._descriptor.vmcloner_storage_backend(), factory=self._make)


class Ends:
    """Notes what observers are told of runs."""

    def __init__(self):
        self.plans, self.results = [], []

    @hookimpl
    def vmcloner_plan_ready(self, plan):
        self.plans.append(plan)

    @hookimpl
    def vmcloner_run_finished(self, result):
        self.results.append(result)


@attrs.frozen
class Site:
    engine: Engine
    hypervisors: dict
    pools: dict
    ends: Ends
    folder: object
    plugins: list


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "vmcloner.toml"
    config.write_text(SETTINGS.format(folder=tmp_path))
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "t1.toml").write_text(TEMPLATE)
    (tmp_path / "templates" / "image.raw").write_bytes(bytes(1024**2))
    hypervisors = Hypervisors(HypervisorPlugin(), ReferenceHypervisor)
    pools, ends = Pools(StoragePlugin(), ReferenceStorage), Ends()
    plugins = [hypervisors, pools, BootPlugin(), ends]
    with Engine.open(config=config, plugins=plugins) as engine:
        engine.list()
        yield Site(engine, hypervisors.made, pools.made, ends, tmp_path, plugins)


# --- lanes --------------------------------------------------------------------------------------


def watched(driver, method):
    """Note the members of each call of a driver's method, and how many calls there are at once."""
    seen, lock, inner = {"batches": [], "now": 0, "peak": 0}, threading.Lock(), method

    def call(members, *rest):
        with lock:
            seen["batches"].append(len(members))
            seen["now"] += 1
            seen["peak"] = max(seen["peak"], seen["now"])
        yield from inner(members, *rest)
        with lock:
            seen["now"] -= 1

    setattr(driver, method.__name__, call)
    return seen


def test_each_driver_has_its_own_lane(site):
    first, second = site.hypervisors["reference"], site.hypervisors["second"]
    first.undefine_lane = Lane(batch=20, concurrency=4)
    second.undefine_lane = Lane(batch=1, concurrency=1)
    site.engine.create("web", "t1", count=30)
    site.engine.create("db", "t1", count=30, hypervisor="second")
    seen = watched(second, second.undefine)
    site.engine.delete("web", "db")
    assert sum(seen["batches"]) == 30
    assert max(seen["batches"]) == 1
    assert seen["peak"] == 1


def test_a_driver_that_stands_still_holds_no_other(site):
    second, go_on = site.hypervisors["second"], threading.Event()
    site.engine.create("web", "t1", count=5, start=True)
    site.engine.create("db", "t1", count=5, hypervisor="second", start=True)
    inner = second.destroy

    def destroy(names):
        assert go_on.wait(60)
        yield from inner(names)

    second.destroy = destroy
    deleting = threading.Thread(target=lambda: site.engine.delete("web", "db"))
    deleting.start()
    try:
        while site.pools["reference"].volumes() and len(site.pools["reference"].disks) > 5:
            assert deleting.is_alive()
        assert not site.hypervisors["reference"].machines
    finally:
        go_on.set()
        deleting.join()
    assert site.engine.list() == ()


# --- the end of a run ---------------------------------------------------------------------------


def log_of(site):
    (path,) = (site.folder / "state" / "runs").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_whose_import_fails_has_an_end(site, monkeypatch):
    def broken(*_args):
        raise HostCommandError("pool on fire")

    monkeypatch.setattr(site.pools["reference"], "import_image", broken)
    with pytest.raises(HostCommandError, match="on fire"):
        site.engine.create("web", "t1", count=2)
    (result,) = site.ends.results
    assert str(result.error) == "pool on fire"
    assert not result.ok
    assert [str(failure.error) for failure in result.failures] == ["pool on fire"] * 2
    assert log_of(site)[-1]["event"] == "result"
    assert log_of(site)[-1]["error"] == "pool on fire"


@pytest.mark.parametrize(
    ("kind", "told"), [(KeyboardInterrupt, KeyboardInterrupt), (RuntimeError, BackendError)]
)
def test_a_run_that_is_broken_off_has_an_end(site, monkeypatch, kind, told):
    def broken(*_args):
        raise kind("now")

    monkeypatch.setattr(site.pools["reference"], "import_image", broken)
    with pytest.raises(told):
        site.engine.create("web", "t1", count=2)
    assert len(site.ends.plans) == len(site.ends.results) == 1
    assert site.ends.results[0].interrupted == (kind is KeyboardInterrupt)
    assert log_of(site)[-1]["event"] == "result"


def test_the_log_of_a_run_is_closed_however_it_ends(site, monkeypatch):
    opened = []
    inner = type(site.engine._host).run_log
    monkeypatch.setattr(
        type(site.engine._host),
        "run_log",
        lambda self, run: opened.append(inner(self, run)) or opened[-1],
    )
    monkeypatch.setattr(site.pools["reference"], "import_image", None)
    with pytest.raises(BackendError):
        site.engine.create("web", "t1", count=2)
    assert [log._file for log in opened] == [None]


class Leaves:
    """An observer that wants to end the process."""

    @hookimpl
    def vmcloner_step_changed(self, event):
        raise SystemExit(event.clone)

    @hookimpl
    def vmcloner_clone_ready(self, run, clone):
        raise SystemExit(clone)


def test_an_observer_that_leaves_the_process_hangs_nobody(site):
    site.engine.plugins.watch(Leaves())
    assert site.engine.create("web", "t1", count=3, start=True).ok


def test_a_pool_that_gives_no_volume_gets_no_domain(site):
    pool = site.pools["reference"]
    pool.clone = lambda requests, _told: (Outcome(key=r.volume_name) for r in requests)
    with pytest.raises(PartialFailure) as caught:
        site.engine.create("web", "t1", count=2)
    assert "gave no volume" in str(caught.value.failures[0][1])
    assert not site.hypervisors["reference"].machines


def test_addresses_that_cannot_be_read_are_left_out(site):
    site.engine.create("web", "t1", count=1, start=True)
    dead(site.hypervisors["reference"], "addresses")
    (clone,) = site.engine.list()
    assert (clone.state, clone.ip) == (State.RUNNING, None)


# --- backends that can't be read ----------------------------------------------------------------


def dead(driver, method, error=None):
    def raises(*_args):
        raise error or BackendError("its daemon is down")

    setattr(driver, method, raises)


@pytest.fixture
def two(site):
    """A fleet on each hypervisor and pool; the second's are then dead, one after the other."""
    site.engine.create("web", "t1", count=2)
    site.engine.create("db", "t1", count=2, hypervisor="second")
    site.engine.create("far", "t1", count=2, storage="other")
    return site


@pytest.mark.parametrize("error", [None, RuntimeError("a bug")])
def test_what_can_be_read_is_listed(two, error):
    dead(two.hypervisors["second"], "inspect", error)
    found = two.engine.survey()
    states = {clone.name: clone.state for clone in found.clones}
    assert states["web-1"] is State.STOPPED
    assert states["db-1"] is State.UNKNOWN
    (unseen,) = found.unseen
    assert (unseen.kind, unseen.name) == ("hypervisor", "second")
    assert [clone.name for clone in two.engine.list("web")] == ["web-1", "web-2"]
    assert two.engine.show("web-1").state is State.STOPPED


def test_a_backend_that_hangs_holds_nobody_up(two, monkeypatch):
    hung, end = threading.Event(), threading.Event()

    def hangs():
        hung.set()
        end.wait(60)

    two.hypervisors["second"].inspect = hangs
    monkeypatch.setattr("vmcloner_core.survey.DEADLINE", 0.3)
    found = two.engine.survey()
    assert hung.is_set()
    assert [str(each.error) for each in found.unseen] == ["no answer within 300 ms"]
    assert "web-1" in {clone.name for clone in found.clones}
    with pytest.raises(BackendError, match="no answer"):
        two.engine.create("new", "t1", hypervisor="second")
    end.set()


def test_a_backend_that_leaves_the_process_is_not_obeyed(two):
    dead(two.hypervisors["second"], "inspect", SystemExit(3))
    (unseen,) = two.engine.survey().unseen
    assert str(unseen.error) == "SystemExit: 3"


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("hypervisors", "check"),
        ("hypervisors", "resources"),
        ("pools", "capacity"),
        ("pools", "need"),
        ("pools", "origins"),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit("a bug")])
def test_a_backend_with_a_bug_is_named(two, kind, method, error):
    dead(getattr(two, kind)["reference"], method, error)
    with pytest.raises(BackendError, match=r"reference.*: a bug"):
        two.engine.create("new", "t1", count=1)


def test_what_needs_no_image_goes_on_without_a_pools(two, caplog):
    dead(two.pools["other"], "origins")
    assert {origin.pool for origin in two.engine.origins()} == {"reference"}
    assert "storage 'other' could not be read: its daemon is down" in caplog.text


def test_a_check_of_a_host_goes_on_after_a_backend_that_fails(two):
    dead(two.hypervisors["second"], "probe", RuntimeError("a bug"))
    two.pools["other"].probe = lambda: ["fine"]
    found = {check.backend: check for check in two.engine.check_host() if check.name == "plugin"}
    assert (
        found["second"].detail
        == "probe of hypervisor 'second': RuntimeError: a bug; its plugin is 'reference'"
    )
    assert found["other"].detail == (
        "probe of storage 'other': its plugin gave a str; its plugin is 'reference'"
    )


def test_a_driver_that_cannot_be_closed_keeps_no_other_open(two, caplog):
    closed = []
    dead(two.hypervisors["second"], "close", RuntimeError("a bug"))
    two.pools["other"].close = lambda: closed.append("other")
    two.engine.close()
    assert closed == ["other"]
    assert "hypervisor 'second': closing: RuntimeError: a bug" in caplog.text


def test_a_stop_of_what_cannot_be_seen_is_refused(two):
    """It may run: to say that there was nothing to do would be a guess."""
    two.engine.start("db")
    dead(two.hypervisors["second"], "inspect")
    for action in (two.engine.stop, two.engine.start, two.engine.delete):
        with pytest.raises(BackendError, match="'second' could not be read"):
            action("db")
    assert two.engine.stop("web").ok


def test_a_backend_that_says_nonsense_is_not_believed(two):
    two.pools["other"].volumes = lambda: None
    (unseen,) = two.engine.survey().unseen
    assert (unseen.name, str(unseen.error)) == ("other", "its plugin gave a NoneType")


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [("labels", None, "NoneType"), ("name", 3, "int"), ("labels", {"fleet": "web"}, "dict")],
)
def test_volumes_of_nonsense_are_not_believed(two, field, value, kind):
    pool = two.pools["other"]
    found = tuple(attrs.evolve(volume, **{field: value}) for volume in pool.volumes())
    pool.volumes = lambda: found
    (unseen,) = two.engine.survey().unseen
    assert (unseen.name, str(unseen.error)) == ("other", f"its plugin gave a {kind}")


@pytest.mark.parametrize(("field", "value"), [("labels", "web"), ("state", "running")])
def test_domains_of_nonsense_are_not_believed(two, field, value):
    machines = two.hypervisors["second"]
    found = machines.inspect()
    domains = tuple(attrs.evolve(domain, **{field: value}) for domain in found.domains)
    machines.inspect = lambda: attrs.evolve(found, domains=domains)
    (unseen,) = two.engine.survey().unseen
    assert (unseen.name, str(unseen.error)) == ("second", "its plugin gave a str")


def test_a_clone_is_no_orphan_for_a_disk_that_cannot_be_read(two):
    dead(two.pools["other"], "volumes")
    assert {c.state for c in two.engine.list("far")} == {State.STOPPED}


def test_what_needs_no_dead_backend_goes_on(two):
    dead(two.hypervisors["second"], "inspect")
    dead(two.pools["other"], "volumes")
    assert two.engine.start("web").ok
    assert two.engine.create("new", "t1", count=2).ok
    assert two.engine.delete("web", "new").ok


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("needs the hypervisor", lambda e: e.create("new", "t1", hypervisor="second")),
        ("needs the pool", lambda e: e.create("new", "t1", storage="other")),
        ("its clones are there", lambda e: e.delete("db")),
        ("its disks are there", lambda e: e.delete("far")),
        ("they may be there", lambda e: e.delete("web-[1-3]")),
        ("it may be there", lambda e: e.delete("unknown")),
        ("it may be there", lambda e: e.start("unknown")),
        ("there may be others", lambda e: e.delete(everything=True)),
        ("it may be there", lambda e: e.show("unknown-1")),
        ("a name may be taken there", lambda e: e.create("far", "t1", count=3)),
    ],
)
def test_what_cannot_be_sure_is_refused(two, name, act):
    dead(two.hypervisors["second"], "inspect")
    dead(two.pools["other"], "volumes")
    with pytest.raises((BackendError, Conflict), match=r"could not be read|was made with"):
        act(two.engine)
    assert len(two.pools["reference"].disks) == 4


def test_a_record_tells_of_clones_that_cannot_be_read(two):
    """All that is left of them to be seen is the record."""
    two.pools["reference"].disks.clear()
    dead(two.hypervisors["second"], "inspect")
    with pytest.raises(BackendError, match="'second' could not be read"):
        two.engine.create("db", "t1", count=2)


def test_list_says_what_it_could_not_read_and_ends_with_10(two, monkeypatch, capsys):
    from vmcloner_core.cli import app

    monkeypatch.setattr(app.Shell, "engine", two.engine)
    dead(two.hypervisors["second"], "inspect")
    assert app.main(["list", "-f", "json"]) == PartialFailure.exit_code
    said = capsys.readouterr()
    assert "web-1" in {row["name"] for row in json.loads(said.out)}
    (line,) = said.err.splitlines()
    assert "hypervisor 'second' could not be read: its daemon is down" in line


def test_settings_that_are_wrong_are_no_backend_that_cannot_be_read(site):
    config = site.folder / "wrong.toml"
    config.write_text(SETTINGS.format(folder=site.folder) + "colour = 1\n")
    with (
        Engine.open(config=config, plugins=site.plugins) as engine,
        pytest.raises(InvalidRequest, match=r"hosts.local.storage.other: unknown key 'colour'"),
    ):
        engine.survey()


def test_a_name_that_is_nowhere_is_not_found_while_all_can_be_read(two):
    with pytest.raises(NotFound):
        two.engine.start("unknown")


def test_what_lies_in_a_pool_that_is_not_set_up_is_not_deleted(two):
    """Its volumes would be left behind."""
    shutil.rmtree(two.engine.host.records)  # as of clones of before every one had a record
    config = two.folder / "less.toml"
    config.write_text(SETTINGS.format(folder=two.folder).replace("storage.other", "storage.x"))
    with (
        Engine.open(config=config, plugins=two.plugins) as engine,
        pytest.raises(BackendError, match=r"storage 'other' .* the settings do not have it"),
    ):
        engine.delete("far")
    assert len(two.pools["other"].disks) == len(two.engine.list("far")) == 2


@pytest.mark.parametrize(
    ("kind", "name", "fleet"), [("storage", "other", "far"), ("hypervisor", "second", "db")]
)
def test_clones_on_a_backend_that_the_settings_lack_are_not_deleted(two, kind, name, fleet):
    """Whatever is left of them: domains, volumes, or a record alone."""
    config = two.folder / "less.toml"
    config.write_text(SETTINGS.format(folder=two.folder).replace(f"{kind}.{name}", f"{kind}.x"))
    if kind == "storage":
        two.hypervisors["reference"].undefine([f"{fleet}-2"])
    with Engine.open(config=config, plugins=two.plugins) as engine:
        found = engine.survey()
        assert [(each.kind, each.name) for each in found.unseen] == [(kind, name)]
        for targets in ([fleet], [f"{fleet}-1"], [f"{fleet}-2"]):
            with pytest.raises(BackendError, match="the settings do not have it") as caught:
                engine.delete(*targets)
            assert f"[hosts.local.{kind}.{name}]" in caught.value.hint
        engine.delete("web")
    assert [clone.name for clone in two.engine.list(fleet)] == [f"{fleet}-1", f"{fleet}-2"]


def test_a_clone_that_lost_its_volumes_labels_is_not_deleted(site):
    """Its pool was copied without them, say. The others are."""
    site.engine.create("web", "t1", count=3, start=True)
    pool = site.pools["reference"]
    pool.foreign.add("web-2-disk0")
    del pool.disks["web-2-disk0"]
    [clone] = site.engine.list("web-2")
    assert clone.unlabelled == ("web-2-disk0",)
    for _ in range(2):
        with pytest.raises(PartialFailure) as caught:
            site.engine.delete("web")
        [(name, error)] = caught.value.failures
        assert name == "web-2"
        assert isinstance(error, Conflict)
        assert "volume web-2-disk0 in storage 'reference'" in error.message
        assert error.hint
    [clone] = site.engine.list("web")
    assert clone.domain.state is State.RUNNING
    pool.foreign.clear()
    site.engine.delete("web")
    assert site.engine.list() == ()


def test_a_record_whose_volume_lost_its_labels_is_kept(site):
    site.engine.create("web", "t1", count=1)
    pool = site.pools["reference"]
    list(site.hypervisors["reference"].undefine(["web-1"]))
    pool.foreign.add("web-1-disk0")
    del pool.disks["web-1-disk0"]
    with pytest.raises(PartialFailure):
        site.engine.delete("web")
    assert [clone.name for clone in site.engine.list()] == ["web-1"]


# --- state folders ------------------------------------------------------------------------------


@pytest.fixture
def other(site):
    """An engine with a state folder of its own, on the same pools and hypervisors."""
    config = site.folder / "other.toml"
    config.write_text(SETTINGS.format(folder=site.folder / "other"))
    with Engine.open(config=config, plugins=site.plugins) as engine:
        yield engine


def test_what_is_of_another_state_folder_is_shown_and_never_touched(site, other):
    site.engine.create("web", "t1", count=2, start=True)
    other.create("db", "t1", count=1)
    assert [(c.name, c.ours) for c in other.list()] == [
        ("db-1", True), ("web-1", False), ("web-2", False),
    ]  # fmt: skip
    for act in (other.stop, other.reset, other.delete, other.start):
        with pytest.raises(Conflict, match="web-1 belongs to another state folder"):
            act("web-1")
    with pytest.raises(Conflict, match="another state folder"):
        other.create("web", "t1", count=3)
    other.delete(everything=True)
    assert [clone.name for clone in site.engine.list()] == ["web-1", "web-2"]
    assert {clone.state for clone in site.engine.list()} == {State.RUNNING}
    site.engine.delete("web")


def test_clones_of_before_state_folders_had_ids_are_everybodys(site, other):
    site.engine.create("web", "t1", count=1)
    pool, machines = site.pools["reference"], site.hypervisors["reference"].machines
    ((name, volume),) = pool.disks.items()
    pool.disks[name] = attrs.evolve(volume, labels=attrs.evolve(volume.labels, state=None))
    domain = machines["web-1"]
    machines["web-1"] = attrs.evolve(domain, labels=attrs.evolve(domain.labels, state=None))
    assert other.list()[0].ours
    assert other.delete("web").ok


def test_a_file_without_an_id_is_not_guessed(site):
    """Another id would make strangers of all clones."""
    site.engine.create("web", "t1", count=1)
    site.engine.host.state_id.write_text("")
    config = site.folder / "vmcloner.toml"
    with (
        Engine.open(config=config, plugins=site.plugins) as engine,
        pytest.raises(BackendError, match="does not contain a state folder's id"),
    ):
        engine.create("db", "t1", count=1)


def test_a_plan_that_was_made_before_there_was_a_state_folder(site, other):
    plan = other.plan(CreateRequest(fleet="db", template="t1"))
    assert not other.host.state.exists()
    assert other.apply(plan).ok
    (clone,) = other.list("db")
    assert other.host.state_id.read_text().strip() == clone.labels.state
    assert clone.ours


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_state_folder_that_others_can_write_is_refused(site, mode):
    site.engine.create("web", "t1", count=1)
    state = site.engine.host.state
    for folder in (state, state / "identity"):
        folder.chmod(mode)
        refused = pytest.raises(InvalidRequest, match="not used, since it can be written by other")
        with refused as error:
            site.engine.delete("web")
        with refused:  # records are believed where clones are only reached, too
            site.engine.list()
        checks = [c for c in site.engine.check_host() if c.name == "state folder"]
        assert [(c.detail, c.status.value) for c in checks] == [(error.value.message, "failed")]
        folder.chmod(0o755)
        assert site.engine.list("web")


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(site):
    site.engine.host.state.mkdir()
    (site.engine.host.state / "lock").symlink_to(site.folder / "elsewhere")
    with pytest.raises(BackendError):
        site.engine.create("web", "t1", count=1)
    assert not (site.folder / "elsewhere").exists()


def test_what_the_command_makes_is_its_users_whatever_the_umask(site, monkeypatch):
    from vmcloner_core.cli import app

    monkeypatch.setattr(app.Shell, "engine", site.engine)
    before = os.umask(0)
    try:
        assert app.main(["create", "web", "-t", "t1"]) == 0
    finally:
        os.umask(before)
    made = [site.engine.host.state, *site.engine.host.state.rglob("*")]
    assert len(made) > 4
    assert [path for path in made if path.stat().st_mode & 0o022] == []


def test_what_the_engine_makes_is_its_users_whatever_the_umask(site):
    """A service that uses the engine has an umask of its own."""
    before = os.umask(0)
    try:
        site.engine.create("web", "t1", count=1, start=True)
    finally:
        os.umask(before)
    made = [site.engine.host.state, *site.engine.host.state.rglob("*")]
    assert len(made) > 4
    assert [path for path in made if path.stat().st_mode & 0o022] == []


# --- backends of a fleet ------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"hypervisor": "second"}, {"storage": "other"}])
@pytest.mark.parametrize("count", [2, 3])
def test_a_fleet_stays_on_its_backends(two, other, count):
    with pytest.raises(Conflict, match="was made with"):
        two.engine.create("web", "t1", count=count, **other)


# --- runs that are cut off ----------------------------------------------------------------------


@pytest.mark.parametrize("step", ["reset", "start"])
def test_a_reset_that_is_cut_off_starts_what_ran_when_it_is_run_again(site, monkeypatch, step):
    site.engine.create("web", "t1", count=3)
    site.engine.start("web-[1-2]")
    broken = STEPS[step]
    with monkeypatch.context() as patch:
        patch.setattr(type(broken), "call", lambda *_args: iter(()))
        with pytest.raises(PartialFailure):
            site.engine.reset("web")
    assert {clone.state for clone in site.engine.list()} == {State.STOPPED}
    site.engine.reset("web")
    states = [clone.state.value for clone in site.engine.list()]
    assert states == ["running", "running", "stopped"]
    site.engine.stop("web", kill=True)
    site.engine.reset("web")
    assert {clone.state for clone in site.engine.list()} == {State.STOPPED}


# --- runs at once ---------------------------------------------------------------------------


def test_creates_at_once_bring_an_image_in_one_after_the_other(site):
    pool = site.pools["reference"]
    seen = {"now": 0, "peak": 0}
    inner, lock = pool.import_image, threading.Lock()

    def import_image(*args):
        with lock:
            seen["now"] += 1
            seen["peak"] = max(seen["peak"], seen["now"])
        time.sleep(0.05)
        try:
            return inner(*args)
        finally:
            with lock:
                seen["now"] -= 1

    pool.import_image = import_image
    config = site.folder / "vmcloner.toml"
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(Engine.open(config=config, plugins=site.plugins)) for _ in range(3)
        ]
        with ThreadPoolExecutor(3) as threads:
            runs = [
                threads.submit(engine.create, f"fleet{number}", "t1", count=3)
                for number, engine in enumerate(engines)
            ]
            assert all(run.result().ok for run in runs)
    assert seen["peak"] == 1
    assert len(site.engine.list()) == 9


# --- the wire -----------------------------------------------------------------------------------


def test_plans_results_and_errors_can_be_sent(two):
    request = CreateRequest(fleet="new", template="t1", count=3, ready=True)
    plan = two.engine.plan(request)
    assert pickle.loads(pickle.dumps(request)) == request
    assert pickle.loads(pickle.dumps(plan)) == plan
    two.pools["reference"].fail["new-2"] = HostCommandError("no", hint="try it")
    result = two.engine.run(request)
    again = pickle.loads(pickle.dumps(result))
    assert again.plan == result.plan
    assert [(f.name, str(f.error)) for f in again.failures] == [("new-2", "no (try it)")]


def test_errors_keep_what_they_carry():
    inner = NotFound("x", hint="y")
    error = pickle.loads(pickle.dumps(PartialFailure("a", failures=[("web-1", inner)], hint="b")))
    assert (error.message, error.hint, error.exit_code) == ("a", "b", 10)
    ((name, found),) = error.failures
    assert (name, type(found), str(found)) == ("web-1", NotFound, "x (y)")
    assert isinstance(error, VmclonerError)


def test_a_disk_of_another_state_folder_in_another_pool_is_never_deleted(site):
    site.engine.create("web", "t1", count=1)
    mine = site.engine.show("web-1").volumes[0]
    labels = attrs.evolve(mine.labels, storage="other", state="f" * 32)
    other = site.pools["other"]
    other.volumes = lambda: (attrs.evolve(mine, pool="other", labels=labels),)
    deleted = []
    other.delete = lambda volumes: deleted.extend(volumes) or iter(())
    with pytest.raises(Conflict, match="another state folder"):
        site.engine.delete("web-1")
    assert site.engine.delete(everything=True).results == ()
    assert deleted == []
    assert site.engine.show("web-1").volumes[0] == mine


def test_a_clone_that_was_stopped_after_a_failed_reset_stays_stopped(lab, monkeypatch):
    lab.engine.create("web", "t1", count=1, start=True)

    def fails(names):
        for name in names:
            yield Outcome(key=name, error=HostCommandError("no"))

    with monkeypatch.context() as patch:
        patch.setattr(lab.machines, "destroy", fails)
        with pytest.raises(PartialFailure):
            lab.engine.reset("web")
    lab.engine.stop("web", kill=True)
    lab.engine.reset("web")
    assert lab.engine.show("web-1").state is State.STOPPED


def test_a_roll_back_stops_no_guest_that_was_paused_before(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.stop("web-2", kill=True)
    held = lab.machines.machines
    held["web-1"] = attrs.evolve(held["web-1"], state=State.PAUSED)
    lab.machines.fail["start", "web-2"] = HostCommandError("no")
    with pytest.raises(PartialFailure):
        lab.engine.create("web", "t1", count=2, start=True, on_failure=OnFailure.ROLLBACK)
    assert [clone.state for clone in lab.engine.list()] == [State.RUNNING, State.STOPPED]


@pytest.mark.parametrize("request_of", ["create", "start"])
def test_a_hypervisor_that_hangs_after_it_was_read_ends_the_plan(lab, monkeypatch, request_of):
    lab.engine.create("web", "t1", count=1)
    hung = threading.Event()
    monkeypatch.setattr("vmcloner_core.deadlines.DEADLINE", 0.2)
    monkeypatch.setattr(answers, "__defaults__", (0.2,))
    monkeypatch.setattr(lab.machines, "resources", hung.wait)
    try:
        with pytest.raises(BackendError, match=r"reference'.*: no answer within"):
            lab.engine.start("web") if request_of == "start" else lab.engine.create("db", "t1")
    finally:
        hung.set()
    assert [clone.name for clone in lab.engine.list()] == ["web-1"]
