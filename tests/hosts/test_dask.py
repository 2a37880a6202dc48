"""Calls by Dask distributed: a real cluster here, with engines on libvirt's test driver."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmcloner_core.errors import BackendError, InvalidRequest, WrongState
from vmcloner_core.hooks import hookimpl
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Answered, Asked
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.hosts.opening import open_hosts
from vmcloner_core.locks import hold_free
from vmcloner_core.model import RemoteHost

pytest.importorskip("distributed")
pytest.importorskip("libvirt")

from tests.hosts import cluster as clusters
from vmcloner_dask import carrier as carriers
from vmcloner_dask import remote
from vmcloner_dask.settings import DaskSettings

TEMPLATE = """
hypervisors = ["kvm"]
memory = "32MiB"
[image]
path = "image.raw"
"""


class Site:
    """A cluster, and hosts that are folders."""

    def __init__(self, folder):
        self.folder = folder
        clusters.certify(folder / "tls", "scheduler", "worker", "controller")
        clusters.certify(folder / "other", "controller")
        self.cluster = clusters.Cluster(folder, "127.0.0.1", folder / "tls")
        templates = folder / "config/vmcloner/templates"
        templates.mkdir(parents=True)
        (templates / "t1.toml").write_text(TEMPLATE)
        (templates / "image.raw").write_bytes(os.urandom(4096) + bytes(2**20 - 4096))
        self.workers = {}
        for name in ("h1", "h2"):
            (folder / name).mkdir()
            (folder / name / "vmcloner.toml").write_text(
                f'[hosts.local]\nstate = "{folder / name}/state"\nseed = "{name}"\n'
                '[hosts.local.hypervisor.kvm]\nuri = "test:///default"\n'
            )
        self.cluster.start()
        self.config = folder / "vmcloner.toml"
        self.config.write_text(self.tables("h1", "h2") + self.cluster.settings())

    def tables(self, *names):
        return "".join(
            f'[hosts.{name}]\nssh = "{name}"\nconfig = "{self.folder / name}/vmcloner.toml"\n'
            for name in names
        )

    def start(self, name, **environment):
        """Start a host's worker; returns when the scheduler has it."""
        log = self.folder / name / "worker.log"
        log.write_text("")
        process = subprocess.Popen(
            self.cluster.worker(name),
            env={
                **clusters.UNPROFILED,
                "XDG_CONFIG_HOME": str(self.folder / "config"),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        until(lambda: "Registered to" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process

    def on(self):
        """Have one worker beside each host."""
        for name in ("h1", "h2"):
            if name not in self.workers or self.workers[name].poll() is not None:
                self.workers[name] = self.start(name)

    def off(self, name):
        self.workers[name].kill()
        self.workers[name].wait()

    def address(self, name):
        return RemoteHost(
            name=name, ssh=name, python="", config=f"{self.folder / name}/vmcloner.toml"
        )

    def is_held(self, name, fleet):
        with hold_free(self.folder / name / "state", [f"fleet/{fleet}"]) as free:
            return not free

    def close(self):
        for process in self.workers.values():
            process.kill()
            process.wait()
        self.cluster.close()


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def engines(process):
    """Return the engines' processes of a worker."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("dask"))
    yield site
    site.close()


@pytest.fixture
def site(whole_site):
    whole_site.on()
    yield whole_site
    for name, process in whole_site.workers.items():
        until(lambda process=process: process.poll() is not None or not engines(process))
        assert not whole_site.is_held(name, "web")


@pytest.fixture
def carrier(site):
    made = carriers.DaskCarrier(
        DaskSettings(
            scheduler=site.cluster.url,
            ca=site.folder / "tls/ca.pem",
            cert=site.folder / "tls/controller.pem",
            key=site.folder / "tls/controller.key",
        )
    )
    yield made
    made.close()


def ask(carrier, host, name, event=lambda _text: None, **values):
    answered = wire.load(
        carrier.call(host, name, wire.dump(Asked(**values)), event), Answered, whose=host
    )
    if answered.error is not None:
        raise answered.error
    return answered.value


def test_clones_are_made_and_events_come(site):
    seen = []

    class Watch:
        @hookimpl
        def vmcloner_step_changed(self, event):
            seen.append((event.clone, event.step, event.status.name))

    with open_hosts(config=site.config, plugins=[Watch()]) as hosts:
        hosts.create("web", "t1", count=4)
        assert sorted((c.name, c.host) for c in hosts.list()) == [
            ("web-1", "h1"), ("web-2", "h2"), ("web-3", "h1"), ("web-4", "h2"),
        ]  # fmt: skip
        assert {(clone, step) for clone, step, status in seen if status == "DONE"} >= {
            (f"web-{n}", "define") for n in range(1, 5)
        }
        assert len(hosts.hosts()) == 2
        hosts.delete("web")


def test_a_killed_controller_leaves_no_engine_and_no_lock(site):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from vmcloner_core.hosts.opening import open_hosts\n"
        "from vmcloner_core.request import CreateRequest\n"
        "hosts = open_hosts(config=Path(sys.argv[1]))\n"
        "request = CreateRequest(fleet='web', template='t1', count=2)\n"
        "hosts.run(request, on_plan=lambda _: (print('held', flush=True), time.sleep(100)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, site.config], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert site.is_held("h1", "web")
        assert site.is_held("h2", "web")
        process.send_signal(signal.SIGKILL)
    until(lambda: not site.is_held("h1", "web") and not site.is_held("h2", "web"))


def test_a_lost_worker_is_told_at_once_and_what_dask_runs_again_has_no_effect(site, carrier):
    addresses = [site.address("h1"), site.address("h2")]
    assert carrier.connect(addresses) == {}
    ask(carrier, "h1", "hold", fleets=("web",))
    session = carrier._sessions["h1"]
    site.off("h1")
    until(lambda: session.lost)
    site.on()
    until(lambda: not session.lost)  # Dask began it again
    assert not site.is_held("h1", "web")
    with pytest.raises(Unreachable, match="host 'h1' does not answer"):
        ask(carrier, "h1", "release")
    assert ask(carrier, "h2", "fleets") == "[]"
    assert carrier.connect(addresses) == {}
    with pytest.raises(WrongState, match="nothing is planned"):
        ask(carrier, "h1", "run", run="x")


def test_a_worker_that_is_killed_during_a_call_ends_it(site, carrier):
    """A second controller waits for the fleet; its worker goes."""
    carrier.connect([site.address("h2")])
    with hold_free(site.folder / "h2/state", ["fleet/web"]):
        killer = threading.Timer(2, site.off, ["h2"])
        killer.start()
        with pytest.raises(Unreachable, match="host 'h2' does not answer"):
            ask(carrier, "h2", "hold", fleets=("web",))
        killer.join()


def test_a_controller_that_waits_for_a_fleet_keeps_no_worker_busy(site, carrier, caplog):
    """Each worker has one thread: what holds the fleet must get through to let it go."""
    carrier.connect([site.address("h1")])
    other = carriers.DaskCarrier(carrier._where)
    try:
        other.connect([site.address("h1")])
        ask(carrier, "h1", "hold", fleets=("web",))
        waiting = threading.Thread(
            target=ask, args=(other, "h1", "hold"), kwargs={"fleets": ("web",)}
        )
        waiting.start()
        until(lambda: "host h1: waiting" in caplog.text)
        ask(carrier, "h1", "release")
        waiting.join(30)
        assert not waiting.is_alive()
    finally:
        other.close()


def test_an_engine_that_is_killed_ends_its_calls(site, carrier):
    carrier.connect([site.address("h1")])
    for pid in engines(site.workers["h1"]):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unreachable):
        ask(carrier, "h1", "fleets")


def test_an_engine_ends_if_its_worker_hangs():
    """A worker that hung kept a fleet's lock."""
    code = "from vmcloner_dask import engine; engine.SILENT = 1; engine.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, ""], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.wait(30) == -signal.SIGALRM


def test_a_call_is_begun_once(tmp_path):
    (tmp_path / "vmcloner.toml").write_text(f'[hosts.local]\nstate = "{tmp_path}/state"\n')
    said = []
    task = SimpleNamespace(state="memory")
    worker = SimpleNamespace(
        state=SimpleNamespace(tasks={"k": task}), log_event=lambda _topic, what: said.append(what)
    )
    session = remote.Session(worker, "k", "topic", str(tmp_path / "vmcloner.toml"))
    for _ in range(2):
        session.call(1, "hello", "{}")
    session.call(2, "nope", "{}")
    until(lambda: len([each for each in said if each["said"] == "a"]) == 2)
    assert session.take(1).startswith('{"value"')
    with pytest.raises(KeyError):
        session.take(1)
    task.state = "released"
    until(lambda: said[-1]["said"] == "g")


def test_a_host_needs_exactly_one_worker(site, carrier):
    failed = carrier.connect([site.address("h1"), RemoteHost(name="h9", ssh="h9", python="")])
    assert list(failed) == ["h9"]
    assert "no worker of Dask offers vmcloner-h9" in failed["h9"].message
    second = site.start("h2")
    try:
        error = carrier.connect([site.address("h2")])["h2"]
        assert error.message == "host 'h2' has 2 workers of Dask"
    finally:
        second.kill()
        second.wait()


def test_a_worker_with_a_profiler_is_refused(site, carrier):
    site.off("h2")
    site.workers["h2"] = site.start("h2", DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED="True")
    error = carrier.connect([site.address("h2")])["h2"]
    assert "start the worker with DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in error.message
    site.off("h2")


def test_a_stranger_is_not_let_in(site, monkeypatch):
    monkeypatch.setattr(carriers, "CONNECTS_WITHIN", 2)
    stranger = DaskSettings(
        scheduler=site.cluster.url,
        ca=site.folder / "other/ca.pem",
        cert=site.folder / "other/controller.pem",
        key=site.folder / "other/controller.key",
    )
    nobody = DaskSettings(scheduler="tcp://127.0.0.1:9")
    for settings in (stranger, nobody):
        made = carriers.DaskCarrier(settings)
        error = made.connect([site.address("h1")])["h1"]
        made.close()
        assert error.message.startswith(f"the scheduler {settings.scheduler} can't be reached: ")
        assert "\n" not in error.message


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('scheduler = "tcp://lab1:8786"', "tcp://lab1:8786 is not on this machine"),
        ('scheduler = "tcp://10.0.0.1:8786"', "is not on this machine"),
        ('scheduler = "tcp://127.0.0.1.evil:8786"', "is not on this machine"),
        ('scheduler = "tls://lab1:8786"', "tls://lab1:8786 needs ca, cert and key"),
        ('scheduler = "tls://lab1:8786"\nca = "x"', "ca must be an absolute path"),
        ('scheduler = "tls://lab1:8786"\nca = "/nowhere/ca.pem"', "ca: no file /nowhere/ca.pem"),
        ('scheduler = "inproc://x"', "not an address of Dask"),
        ("", "scheduler"),
        ('scheduler = "tcp://127.0.0.1:8786"\nport = 1', "unknown key 'port'"),
    ],
)
def test_settings_that_are_not_safe_are_refused(tmp_path, text, error):
    config = tmp_path / "vmcloner.toml"
    config.write_text(f'[hosts.h1]\nssh = "h1"\n[carrier]\ndriver = "dask"\n{text}\n')
    with pytest.raises(InvalidRequest, match="carrier") as caught:
        open_hosts(config=config)
    assert error in str(caught.value)


def test_loopback_needs_no_certificates():
    for address in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1"):
        assert not DaskSettings(scheduler=address).encrypted


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ('driver = "dusk"', "carrier.driver: unknown carrier 'dusk'"),
        ("driver = 1", "unknown carrier 1"),
        ('scheduler = "x"', "carrier 'mitogen' has no settings: scheduler"),
    ],
)
def test_a_carrier_is_chosen_by_name(tmp_path, table, error):
    config = tmp_path / "vmcloner.toml"
    config.write_text(f'[hosts.h1]\nssh = "h1"\n[carrier]\n{table}\n')
    with pytest.raises(InvalidRequest, match=error):
        open_hosts(config=config)


def test_a_carrier_that_is_not_installed_says_what_installs_it(tmp_path, monkeypatch):
    config = tmp_path / "vmcloner.toml"
    config.write_text('[hosts.h1]\nssh = "h1"\n[carrier]\ndriver = "dask"\n')
    monkeypatch.delitem(sys.modules, "vmcloner_dask.carrier")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BackendError, match="distributed, which is not installed") as caught:
        open_hosts(config=config)
    assert caught.value.hint == "pip install 'vmcloner[dask]'"
