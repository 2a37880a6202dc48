"""Three machines with libvirt of their own, reached over a network: real clones, real faults.

What takes ``carried`` is the suite of faults that each carrier of calls to machines passes;
test_controller.py has the same for hosts in one process. The long ones are marked slow
(``make test-hosts``).
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from tests.hosts import machines

pytestmark = pytest.mark.libvirt

NAMES = ("h1", "h2", "h3")
TINY = """
hypervisors = ["kvm"]
boot = "kernel"
memory = "128MiB"
ready = 'console:vmcloner-ready name={{ name }} '
[image]
path = "FOLDER/disk.raw"
[kernel]
path = "FOLDER/vmlinuz"
initrd = "FOLDER/initrd.img"
cmdline = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check \
lpj=4000000 host={{ name }}"
"""
PLAIN = """
hypervisors = ["kvm"]
memory = "32MiB"
[image]
path = "FOLDER/plain.raw"
"""


@pytest.fixture(scope="module")
def lab():
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        (folder / "plain.raw").write_bytes(os.urandom(4096) + bytes(1024**2 - 4096))
        build_tiny(folder)
        texts = {"tinyish": TINY, "plain": PLAIN}
        lab = machines.make(
            folder, NAMES, {n: t.replace("FOLDER", str(folder)) for n, t in texts.items()}
        )
        try:
            yield lab
        finally:
            lab.close()
    finally:
        shutil.rmtree(folder)


def build_tiny(folder):
    """Build the guest: the machines have no way out to the network."""
    (folder / "build.toml").write_text(f'[hosts.local]\nstate = "{folder}/built"\n')
    subprocess.run(
        [
            *(Path(sys.executable).parent / "vmcloner", "--config", folder / "build.toml"),
            *("image", "build", "tiny"),
        ],
        check=True, stdin=subprocess.DEVNULL, timeout=250, capture_output=True,
    )  # fmt: skip
    for name in ("disk.raw", "vmlinuz", "initrd.img"):
        shutil.copy2(folder / "built/templates/tiny" / name, folder / name)


@pytest.fixture(autouse=True)
def nothing_left(lab):
    """Each test begins with all machines on, and ends with nothing left on any."""
    for machine in lab.machines.values():
        if machine.process.poll() is not None:
            machine.boot()
    yield
    for machine in lab.machines.values():
        if machine.process.poll() is not None:
            machine.boot()
    lab.run("delete", "--all", "--yes")
    for machine in lab.machines.values():
        assert machine.domains() == []
        volumes = machine.folder / "state/pool/volumes"
        assert not volumes.exists() or not list(volumes.iterdir())


@pytest.fixture(params=["mitogen", "dask"])
def carried(lab, request):
    """The machines, and what carries calls to them."""
    pytest.importorskip({"dask": "distributed"}.get(request.param, request.param))
    lab.carrier = request.param
    yield lab
    lab.carrier = "mitogen"


def begun(machine):
    """Return when a run has made something on a machine."""
    deadline = time.monotonic() + 60
    while not machine.domains():
        assert time.monotonic() < deadline, "nothing is made"


def wait_for_host(lab, machine):
    """Return when a machine can be used: its worker may be starting again."""
    deadline = time.monotonic() + 100
    while True:
        with lab.popen("host", "list", "-f", "json") as process:
            rows = json.loads(process.communicate(timeout=60)[0])
        if {row["host"]: row["state"] for row in rows}[machine.name] == "ok":
            return
        assert time.monotonic() < deadline, rows
        time.sleep(1)


def check_once(lab, fleet, count):
    """Check that a fleet is there, once, with nothing that two clones share."""
    rows = lab.rows(fleet)
    assert [row["name"] for row in rows] == [f"{fleet}-{n}" for n in range(1, count + 1)]
    assert len({row["mac"] for row in rows if row["mac"]}) == len([r for r in rows if r["mac"]])
    found = Counter(name for machine in lab.machines.values() for name in machine.domains())
    assert {name: n for name, n in found.items() if name.startswith(f"{fleet}-")} == {
        f"{fleet}-{n}": 1 for n in range(1, count + 1)
    }
    return rows


@pytest.mark.timeout(600)
def test_clones_on_three_machines_boot(lab):
    lab.run("create", "web", "-t", "tinyish", "-n", "6", "--start", "--wait")
    rows = check_once(lab, "web", 6)
    assert {row["state"] for row in rows} == {"running"}
    assert Counter(row["host"] for row in rows) == {"h1": 2, "h2": 2, "h3": 2}
    assert "web-4" in lab.run("console", "web-4", "--log")
    assert lab.run("show", "web-5", "--xml").startswith("<domain")
    lab.run("stop", "web", "--kill")
    assert {row["state"] for row in lab.rows("web")} == {"stopped"}
    lab.run("delete", "web", "--yes")
    assert lab.rows() == []


def test_the_engines_end_with_their_controller(carried):
    with carried.popen("create", "web", "-t", "plain", "-n", "3") as process:
        process.wait(timeout=100)
    deadline = time.monotonic() + 10
    while any(machine.engines() for machine in carried.machines.values()):
        assert time.monotonic() < deadline, "an engine stays"
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_groups_hosts_and_limits(lab):
    lab.run("create", "a", "-t", "plain", "-n", "3", "--hosts", "h[2-3]", "--per-host", "2")
    assert Counter(row["host"] for row in lab.rows("a")) == {"h2": 2, "h3": 1}
    lab.run("create", "b", "-t", "plain", "-n", "3", "--hosts", "@lab", "--place", "pack")
    assert Counter(row["host"] for row in lab.rows("b")) == {"h1": 3}
    error = lab.run("create", "c", "-t", "plain", "-n", "9", "--per-host", "2", code=7)
    assert "3 hosts can take 6 of 9 new clones" in error
    error = lab.run("create", "c", "-t", "plain", "--hosts", "@nope", code=4)
    assert "unknown group '@nope'" in error


@pytest.mark.timeout(600)
def test_a_machine_without_power_stops_runs_but_not_reads(carried):
    carried.run("create", "web", "-t", "plain", "-n", "6")
    carried.machines["h2"].power_off()
    error = carried.run("list", code=10)
    assert "host 'h2' could not be read" in error
    error = carried.run("create", "web", "-t", "plain", "-n", "6", code=8)
    assert "host 'h2' can't be reached" in error
    carried.run("--without", "h2", "create", "web", "-t", "plain", "-n", "6")
    carried.machines["h2"].boot()
    rows = carried.rows("web")
    assert len({row["name"] for row in rows}) == len(rows) == 8
    carried.run("create", "web", "-t", "plain", "-n", "8")
    check_once(carried, "web", 8)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("carried", "fault"),
    [
        *itertools.product(("mitogen", "dask"), ("engine", "power", "controller")),
        ("dask", "worker"),
    ],
    indirect=["carried"],
)
def test_a_fault_during_a_create_converges(carried, fault):
    """Whatever dies while thirty clones are made: the same command again makes them, once."""
    words = ("create", "web", "-t", "plain", "-n", "30")
    chance = random.Random(fault)
    with carried.popen(*words) as process:
        victim = carried.machines[chance.choice(NAMES)]
        begun(victim)
        if fault == "power":
            victim.power_off()
        elif fault == "engine":
            victim.kill_engines()
        elif fault == "worker":
            victim.run("pkill", "-KILL", "-f", "dask worker")
        else:
            process.kill()
        said = "".join(process.communicate(timeout=120))
    if fault != "controller" and process.returncode != 0:  # it may have been done already
        assert process.returncode == 10, said
        assert f"host {victim.name!r}" in said
    if fault == "power":
        victim.boot()
    if fault == "worker":
        wait_for_host(carried, victim)
    carried.run(*words)
    rows = check_once(carried, "web", 30)
    assert Counter(row["host"] for row in rows) == {"h1": 10, "h2": 10, "h3": 10}


def check_unique(lab):
    """Check that no two clones of the machines share a name, an address or an identity."""
    for question in ("--name", "--uuid"):
        found = [
            word
            for machine in lab.machines.values()
            for word in machine.run("virsh", "-q", "list", "--all", question).stdout.split()
        ]
        assert len(found) == len(set(found)), Counter(found).most_common(3)
    rows = lab.rows()
    for key in ("name", "mac"):
        values = [row[key] for row in rows if row[key]]
        assert len(values) == len(set(values)), Counter(values).most_common(3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_leave_nothing_twice(lab):
    """Machines, engines and controllers are killed in random commands (SEED=1 KILLS=50)."""
    chance = random.Random(os.environ.get("SEED", "1"))
    ends = Counter()
    for _ in range(int(os.environ.get("KILLS", "50"))):
        first = chance.randrange(1, 12)
        words = chance.choice([
            ("create", "web", "-t", "plain", "-n", str(chance.randrange(20, 60))),
            ("create", "web", "-t", "plain", "--add", str(chance.randrange(5, 30))),
            ("create", "db", "-t", "plain", "-n", "30", "--on-failure", "rollback"),
            ("delete", f"web-[{first}-{first + 30}]", "--missing-ok", "--yes"),
            ("delete", "--all", "--yes"),
        ])  # fmt: skip
        victim = lab.machines[chance.choice(NAMES)]
        with lab.popen(*words) as process:
            time.sleep(chance.uniform(0.6, 1.8))
            how = chance.choice(["engine", "power", "controller"])
            if how == "power":
                victim.power_off()
            elif how == "engine":
                victim.kill_engines()
            else:
                process.kill()
            said = "".join(process.communicate(timeout=200))
        assert "Traceback" not in said
        ends[how, process.returncode] += 1
        if victim.process.poll() is not None:
            victim.boot()
        check_unique(lab)
    print(dict(ends))
    lab.run("create", "web", "-t", "plain", "-n", "60")
    check_unique(lab)


@pytest.mark.timeout(600)
def test_with_most_machines_without_power_the_rest_goes_on(carried):
    for name in ("h1", "h3"):
        carried.machines[name].power_off()
    assert "host 'h1' can't be reached" in carried.run("create", "web", "-t", "plain", code=8)
    carried.run("--without", "h[1,3]", "create", "web", "-t", "plain", "-n", "2")
    error = carried.run("list", code=10)
    assert "host 'h1' could not be read" in error
    assert "host 'h3' could not be read" in error
    for name in ("h1", "h3"):
        carried.machines[name].boot()
    assert {row["host"] for row in carried.rows("web")} == {"h2"}


def test_a_machine_with_another_version_is_refused(carried):
    version = metadata.version("vmcloner")
    (real,) = Path(sys.prefix).glob("lib/python*/site-packages/vmcloner-*.dist-info/METADATA")
    other = carried.folder / "METADATA"
    other.write_text(real.read_text().replace(f"\nVersion: {version}", "\nVersion: 0.1", 1))
    victim = carried.machines["h2"]
    victim.run("mount", "--bind", str(other), str(real))
    try:
        error = carried.run("create", "web", "-t", "plain", code=8)
        assert f"host 'h2' has vmcloner 0.1, this machine {version}" in error
    finally:
        victim.run("umount", str(real))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_link_that_is_silent_is_given_up(carried):
    """No packet comes through, and none says so: what holds the fleet there must end, too."""
    words = ("create", "web", "-t", "tinyish", "-n", "3", "--start", "--wait")
    victim = carried.machines["h2"]
    with carried.popen(*words) as process:
        begun(victim)
        victim.unplug()
        try:
            said = "".join(process.communicate(timeout=200))
        finally:
            victim.plug()
    assert process.returncode == 10, said
    assert "host 'h2'" in said
    deadline = time.monotonic() + 200
    while victim.engines():
        assert time.monotonic() < deadline, "an engine stays"
        time.sleep(1)
    wait_for_host(carried, victim)
    carried.run(*words)
    check_once(carried, "web", 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_engine_that_hangs_is_given_up(carried):
    """Its sshd or worker still answers, so a connection notices nothing."""
    words = ("create", "web", "-t", "tinyish", "-n", "3", "--start", "--wait")
    victim = carried.machines["h2"]
    with carried.popen(*words) as process:
        begun(victim)
        victim.kill_engines("STOP")
        said = "".join(process.communicate(timeout=200))
    assert process.returncode == 10, said
    assert "host 'h2' gave no sign of life for 60 s" in said
    victim.kill_engines()
    carried.run(*words)
    check_once(carried, "web", 3)


@pytest.mark.timeout(600)
def test_two_controllers_make_a_fleet_once(carried):
    words = ("create", "web", "-t", "plain", "-n", "12")
    with carried.popen(*words) as one, carried.popen(*words) as two:
        for process in (one, two):
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
    check_once(carried, "web", 12)


def test_ctrl_c_ends_the_run_on_all_machines(carried):
    with carried.popen("create", "web", "-t", "tinyish", "-n", "6", "--start", "--wait") as process:
        deadline = time.monotonic() + 60
        while not any(machine.domains() for machine in carried.machines.values()):
            assert time.monotonic() < deadline, "nothing is made"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "run the same command again" in err


def test_a_host_key_that_differs_is_refused(lab):
    known = lab.folder / "known_hosts"
    before = known.read_text()
    lines = before.splitlines()
    other = lines[0].split()[2]
    try:
        first = lines[2].split()
        known.write_text("\n".join([*lines[:2], f"{first[0]} {first[1]} {other}", ""]))
        error = lab.run("list", code=10)
        assert "host 'h3' can't be reached" in error
    finally:
        known.write_text(before)


@pytest.mark.timeout(600)
def test_a_machine_is_added_with_what_is_installed_here(lab):
    """It has no way out to the network, so everything comes from here."""
    settings = lab.folder / "new.toml"
    settings.write_text("")
    place = lab.machines["h2"].folder / "opt/vmcloner"
    place.parent.mkdir(exist_ok=True)
    words = ("--config", str(settings), "host", "add", "far")
    for _ in range(2):
        lab.run(*words, "h2", "--folder", str(place))
    assert settings.read_text().count("[hosts.far]") == 1
    assert place.joinpath("bin/python").exists()
    (row,) = json.loads(lab.run("--config", str(settings), "host", "list", "-f", "json"))
    assert (row["host"], row["state"]) == ("far", "ok")
    lab.run("--config", str(settings), "create", "web", "-t", "plain", "-n", "2")
    assert lab.machines["h2"].domains() == ["web-1", "web-2"]
    assert "host 'far' is h2" in lab.run(*words, "h3", code=5)
    assert "say where ssh finds it" in lab.run(*words[:-1], "other", code=3)


@pytest.mark.timeout(600)
def test_a_template_that_only_the_controller_has_boots_on_all(lab):
    """Its image and its kernel are sent there."""
    own = lab.folder / "config/vmcloner/templates"
    own.mkdir(parents=True, exist_ok=True)
    text = TINY.replace("FOLDER", str(own / "files"))
    (own / "files").mkdir(exist_ok=True)
    for name in ("disk.raw", "vmlinuz", "initrd.img"):
        shutil.copy2(lab.folder / name, own / "files" / name)
    (own / "far.toml").write_text(text)
    try:
        with lab.popen("create", "web", "-t", "far", "-n", "3", "--hosts", "@lab") as process:
            while not any(lab.folder.glob("h*/state/received/.far-*")) and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        lab.run("create", "web", "-t", "far", "-n", "3", "--hosts", "@lab", "--start", "--wait")
        rows = check_once(lab, "web", 3)
        assert {row["state"] for row in rows} == {"running"}
        assert {row["host"] for row in rows} == set(NAMES)
        for machine in lab.machines.values():
            folder = machine.folder / "state/received"
            assert sorted(path.name for path in folder.iterdir()) == ["far", "far.toml"]
            assert (folder / "far/vmlinuz").read_bytes() == (lab.folder / "vmlinuz").read_bytes()
    finally:
        (own / "far.toml").unlink()


@pytest.mark.timeout(600)
@pytest.mark.timeout(300)
def test_a_lab_is_spread_over_the_machines(lab):
    """Applied with a network of its own, edited, compared, and deleted."""
    file = lab.folder / "lab.toml"
    text = """
    name = "shop"
    [networks.vmclab]
    count = 8
    [fleets.ldb]
    template = "tinyish"
    hosts = "h[1-2]"
    [fleets.lweb]
    template = "tinyish"
    count = 4
    network = "vmclab"
    after = ["ldb"]
    """
    file.write_text(text)
    try:
        lab.run("apply", str(file), timeout=200)
        rows = lab.rows("lweb")
        assert Counter(row["host"] for row in rows).keys() == set(NAMES)
        assert {row["state"] for row in rows} == {"running"}
        assert {row["host"] for row in lab.rows("ldb")} <= {"h1", "h2"}
        assert json.loads(lab.run("diff", str(file), "-f", "json")) == []
        file.write_text(text.replace("count = 4", "count = 2"))
        lab.run("apply", "--prune", "--yes", str(file), timeout=200)
        assert [row["name"] for row in lab.rows("lweb")] == ["lweb-1", "lweb-2"]
    finally:
        lab.run("delete", "--yes", "--lab", str(file))
    for machine in lab.machines.values():
        assert "vmclab" not in machine.run("virsh", "-q", "net-list", "--all", "--name").stdout


def test_a_machine_is_drained(lab):
    lab.run("create", "web", "-t", "plain", "-n", "3")
    lab.run("create", "db", "-t", "tinyish", "-n", "1", "--hosts", "h2", "--start")
    try:
        error = lab.run("host", "drain", "h2", "--delete", "--yes", code=10)
        assert "db-1: still on h2" in error
        assert lab.machines["h2"].domains() == ["db-1"]
        lab.run("create", "web", "-t", "plain", "-n", "4")
        assert Counter(row["host"] for row in lab.rows("web")) == {"h1": 2, "h3": 2}
        rows = json.loads(lab.run("host", "list", "-f", "json"))
        assert [row["drained"] for row in rows] == [None, "drained", None]
    finally:
        lab.run("host", "undrain", "h2")


@pytest.mark.timeout(600)
def test_the_rest_is_done_while_a_machine_is_off(lab):
    lab.run("create", "web", "-t", "plain", "-n", "6", "--ttl", "1h")
    lab.run("snapshot", "create", "web", "s1")
    snapshots = json.loads(lab.run("snapshot", "list", "web", "-f", "json"))
    assert [row["clone"] for row in snapshots] == [f"web-{n}" for n in range(1, 7)]
    events = [json.loads(line) for line in lab.run("events").splitlines()]
    assert {event["host"] for event in events} == set(NAMES)
    templates = json.loads(lab.run("template", "list", "-f", "json"))
    assert {row["host"] for row in templates if row["name"] == "plain"} >= set(NAMES)
    lab.machines["h2"].power_off()
    for words in (("lease", "end", "web"), ("top",), ("gc", "--expired", "--yes")):
        assert "host 'h2' could not be read" in lab.run(*words, code=10), words
    lab.machines["h2"].boot()
    assert [row["name"] for row in lab.rows()] == ["web-2", "web-5"]
    lab.run("lease", "end", "web")
    lab.run("gc", "--expired", "--yes")
    assert lab.rows() == []


OTHER = """
<domain type='qemu'><name>other</name><uuid>UUID</uuid><memory>8192</memory>
<os><type>hvm</type></os></domain>
"""


@pytest.mark.timeout(300)
def test_a_clone_goes_back_from_a_machine_that_can_not_define_it(lab):
    """Another machine there has its UUID, which only libvirt finds."""
    lab.run("create", "web", "-t", "plain", "-n", "1", "--hosts", "h1")
    old, new = lab.machines["h1"], lab.machines["h2"]
    uuid = old.run("virsh", "domuuid", "web-1").stdout.strip()
    disk = next((old.folder / "state/pool/volumes").rglob("web-1*"))
    was = disk.stat().st_ino
    file = new.folder / "other.xml"
    file.write_text(OTHER.replace("UUID", uuid))
    new.run("virsh", "define", file)
    try:
        said = lab.run("move", "web-1", "h2", code=10)
        assert "vmcloner move web-1 h1 takes it back" in said
        assert "web-1 is being moved" in lab.run("start", "web-1", code=6)
        lab.run("move", "web-1", "h1")
    finally:
        new.run("virsh", "undefine", "other")
    assert [(row["host"], row["state"]) for row in lab.rows()] == [("h1", "stopped")]
    assert old.run("virsh", "domuuid", "web-1").stdout.strip() == uuid
    assert disk.stat().st_ino == was, "it never left"
    left = [path for path in (new.folder / "state").rglob("*web-1*") if "runs" not in path.parts]
    assert left == []
    lab.run("move", "web-1", "h2")
    assert new.domains() == ["web-1"]


@pytest.mark.timeout(600)
def test_a_clone_moves_to_another_machine_and_boots_there(lab):
    """It counts its boots on its disk. The controller is killed on the way."""
    lab.run("create", "web", "-t", "tinyish", "-n", "1", "--hosts", "h1", "--start", "--wait")
    assert " boots=1" in lab.run("console", "web-1", "--log")
    assert "web-1 is running" in lab.run("move", "web-1", "h2", code=6)
    lab.run("stop", "web-1", "--kill")
    before = lab.machines["h1"].run("virsh", "domuuid", "web-1").stdout
    with lab.popen("move", "web-1", "h2") as process:
        while not (lab.machines["h2"].folder / "state/moves/web-1").exists():
            assert process.poll() is None, process.communicate()
        process.kill()
        process.wait(timeout=60)
    if [row["host"] for row in lab.rows()] != ["h2"]:  # it may have been done already
        assert "web-1 is being moved" in lab.run("start", "web-1", code=6)
    lab.run("move", "web-1", "h2")
    assert [(row["host"], row["state"]) for row in lab.rows()] == [("h2", "stopped")]
    assert lab.machines["h1"].domains() == []
    state = lab.machines["h1"].folder / "state"
    assert not [path for path in state.rglob("*web-1*") if "runs" not in path.parts]
    lab.run("start", "web-1", "--wait")
    assert lab.machines["h2"].run("virsh", "domuuid", "web-1").stdout == before
    assert " boots=2" in lab.run("console", "web-1", "--log")
