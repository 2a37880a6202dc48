"""The lab's parts on this machine, as far as they need no lab."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from contrib.lab import __main__ as command
from contrib.lab import cache, labs, proc, progress, supplies, tree
from contrib.lab.errors import LabError, LabLost, TimeUp
from contrib.lab.qmp import Qmp
from tests.pauses import until

TOP = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "lab"))


# --- programs of the host -----------------------------------------------------------------------


def test_a_failed_program_says_why():
    with pytest.raises(LabError, match=r"ls failed with 2:\n.*/nowhere"):
        proc.run(["ls", "/nowhere"])


def test_a_program_has_its_time():
    with pytest.raises(TimeUp, match="sleep: no end after 0 s"):
        proc.run(["sleep", "60"], timeout=0.2)


def test_a_missing_program_is_named():
    with pytest.raises(LabError, match="no-such-thing: not installed; run: contrib/setup/packages"):
        proc.need("sh", "no-such-thing")


def has_ended(process):
    """Tell whether a process is gone, or waits for whoever reaps it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second one if it goes while it is read
        return True
    return state == "Z"


def test_a_program_ends_with_whoever_is_killed():
    script = (
        "import subprocess, sys\nfrom contrib.lab.proc import dies_with_us\n"
        "child = subprocess.Popen(dies_with_us(['sleep', '1000']))\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as parent:
        child = int(parent.stdout.readline())
        while Path(f"/proc/{child}/comm").read_text() != "sleep\n":
            pass  # setpriv has not become it yet
        parent.kill()
    until(lambda: has_ended(child))


# --- QEMU's monitor -----------------------------------------------------------------------------


@pytest.fixture
def monitor():
    qmp = Qmp()
    argv = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults"]
    channel = f"socket,id=qmp,fd={qmp.descriptor}"
    process = subprocess.Popen(
        [*argv, "-chardev", channel, "-mon", "chardev=qmp,mode=control"],
        pass_fds=[qmp.descriptor],
    )
    try:
        qmp.begin()
        yield qmp
    finally:
        process.kill()
        process.wait()
        qmp.close()


def test_speaks_to_a_qemu(monitor):
    assert monitor.command("query-status")["running"] is True
    monitor.command("stop")  # its answer comes after an event
    assert monitor.command("query-status")["status"] == "paused"
    assert "paused" in monitor.human("info status")
    with Path(os.devnull).open() as stream:
        monitor.pass_descriptor("name", stream.fileno())
    monitor.command("closefd", {"fdname": "name"})


def test_what_qemu_refuses_is_said(monitor):
    with pytest.raises(LabError, match=r"QEMU: no-such-command: .*not been found"):
        monitor.command("no-such-command")


def test_a_qemu_that_ends_is_said(monitor):
    monitor.command("quit")
    with pytest.raises(LabError, match="QEMU ended"):
        monitor.command("query-status")


# --- what is sent -------------------------------------------------------------------------------


def test_packages_are_asked_for_without_markers():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    wanted = supplies.requirements()
    assert all(";" not in line for line in wanted)
    assert len(wanted) >= len(project["project"]["dependencies"]) + 3
    assert any(line.startswith("pytest>=") for line in wanted)
    assert not any(line.startswith(("libvirt", "mypy", "ruff")) for line in wanted)


def test_vmcloner_is_sent_as_installed():
    key, archive = tree.vmcloner()
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}
        script = tar.extractfile("opt/vmcloner/bin/vmcloner").read().decode()
    site = "opt/vmcloner/lib/python3.11/site-packages"
    assert f"{site}/vmcloner_core/cli/app.py" in members
    assert f"{site}/vmcloner_tiny/init" in members
    assert any(name.endswith(".dist-info/entry_points.txt") for name in members)
    assert members["opt/vmcloner/bin/vmcloner"].mode & 0o111
    assert {member.uid for member in members.values()} == {0}
    assert script.startswith("#!/opt/vmcloner/bin/python3\n")
    assert "from vmcloner_core.cli.__main__ import main" in script
    assert tree.vmcloner() == (key, archive)


def test_tests_are_sent_without_the_sources():
    with tarfile.open(fileobj=io.BytesIO(tree.tests())) as tar:
        names = tar.getnames()
    assert "tests/lab/test_host_side.py" in names
    assert "pyproject.toml" in names
    assert not [name for name in names if name.startswith(("vmcloner_core/", "plugins/", "."))]
    assert not [name for name in names if "__pycache__" in name]


# --- labs that run ------------------------------------------------------------------------------


def record(**changes):
    values = {
        "mode": "kvm",
        "checkout": str(TOP),
        "lasting": True,
        "pid": 1,
        "port": 2,
        "memory": 4096,
        "image": "/nowhere",
        "begun": 0.0,
        "until": 60.0,
    }
    return json.dumps(values | changes)


def test_a_dead_lab_is_not_running_and_is_swept(capsys):
    dead = cache.folder() / "run/kvm-dead"
    dead.mkdir(parents=True)
    (dead / labs.RECORD).write_text(record())
    assert labs.running() == []
    labs.status()
    assert capsys.readouterr().err == "lab: no lab is running\n"
    labs.sweep()
    assert not dead.exists()


def test_a_lab_whose_lock_is_held_is_running_and_stays(capsys):
    alive = cache.folder() / "run/kvm-alive"
    alive.mkdir(parents=True)
    (alive / labs.RECORD).write_text(record())
    with cache.locked(alive / "lock"):
        labs.sweep()
        ((path, found),) = labs.running()
        labs.status()
    assert (path, found.memory) == (alive, 4096)
    assert "memory 4096 MiB" in capsys.readouterr().out


def test_a_program_of_one_who_is_gone_already_is_not_run(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as if we had ended, and init had taken over
    with pytest.raises(LabError, match="failed with 1"):
        proc.run(["true"])


def test_looking_is_in_nobodys_way():
    """Who looks at the labs that run neither sees half a record nor keeps a folder from going."""
    top = cache.folder() / "run"
    top.mkdir()
    looker = threading.Thread(target=lambda: [labs.running() for _ in range(400)])
    looker.start()
    for number in range(200):
        with labs._folder(f"kvm-{number}") as (folder, _lock):
            (folder / labs.RECORD).write_text(record())
            labs._remove(folder)
    looker.join()
    assert [path.name for path in top.iterdir()] == ["lock"]


@pytest.mark.parametrize("text", ["", "{", '{"mode": "kvm", "colour": "red"}'])
def test_a_record_that_says_nothing_is_passed_over(text):
    path = cache.folder() / "run/kvm-other"
    path.mkdir(parents=True)
    (path / labs.RECORD).write_text(text)
    with cache.locked(path / "lock"):
        assert labs.running() == []


def test_a_lasting_lab_belongs_to_its_checkout_and_mode():
    kvm, xen = labs.MODES["kvm"], labs.MODES["xen"]
    assert labs.attach(kvm) is None
    labs.down(kvm)
    path = cache.folder() / "run" / labs.lasting_name(kvm)
    path.mkdir()
    (path / labs.RECORD).write_text(record(image=str(path)))
    with cache.locked(path / "lock"):
        assert labs.attach(kvm).record.port == 2
        assert labs.attach(xen) is None


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("kvm", "run"), ("xen", "run", "--")])
def test_a_command_is_needed(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab", *words])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main() == command.FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "lab: run what? For example: lab kvm run -- lvs\n"


def test_options_of_the_command_inside_are_its_own():
    options = command.parser().parse_args(["kvm", "run", "--seconds", "5", "--", "ls", "--all"])
    assert (options.seconds, options.command) == (5.0, ["--", "ls", "--all"])
    options = command.parser().parse_args(["xen", "test", "--", "-m", "xen", "tests/xen"])
    assert options.arguments == ["--", "-m", "xen", "tests/xen"]


def test_what_is_no_variable_is_refused():
    words = ["xen", "run", "--env", "A=1=2", "--env", "B=", "--", "id"]
    assert command.parser().parse_args(words).env == ["A=1=2", "B="]
    for wrong in ("A", "a b=1", "-u=1", "=1"):
        with pytest.raises(SystemExit):
            command.parser().parse_args(["xen", "run", f"--env={wrong}", "--", "id"])


@pytest.mark.parametrize(("ci", "given"), [("true", ["CI=true"]), (None, [])])
def test_tests_inside_know_that_it_is_ci(monkeypatch, tmp_path, ci, given):
    """There, what is missing fails, as outside."""
    runs = []

    class Inside:
        channel = SimpleNamespace(call=lambda *_: b"")

        def run(self, _argv, _seconds, _folder, variables):
            runs.append(variables)
            return 0

    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(labs, "lab", lambda *_: contextlib.nullcontext(Inside()))
    words = ["kvm", "test", "--junit", str(tmp_path / "junit.xml"), "--env", "A=1", "--", "tests"]
    assert command.test(command.parser().parse_args(words)) == 0
    assert runs == [[*given, "A=1"]]


# --- labs that are lost -------------------------------------------------------------------------


@pytest.fixture
def lossy(monkeypatch):
    """Have labs that are lost once for each console in the list; return it and the runs."""
    consoles, runs = [], []

    def run(_options, arguments, done):
        runs.append((arguments, [*done]))
        if consoles:
            raise LabLost("the kvm lab no longer answers", consoles.pop(0))
        return 0

    monkeypatch.setattr(command, "_test", run)
    return consoles, runs


def test_what_had_not_passed_in_a_lost_lab_is_run_in_a_new_one(lossy, capsys):
    consoles, runs = lossy
    consoles += [f"[1.0] kernel\r\n\r\n{progress.MARK}tests/a.py::one[x y]\r\n[2.0] stuck\n"]
    options = command.parser().parse_args(["kvm", "test", "--", "-m", "lvm", "tests"])
    assert command.test(options) == 0
    words = ["-m", "lvm", "tests"]
    assert runs == [(words, []), (words, ["tests/a.py::one[x y]"])]
    assert "tests that passed in it: 1; the others are run in a new one" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [["", ""], [None]])
def test_a_second_loss_and_that_of_a_lasting_lab_are_failures(lossy, lost):
    consoles, runs = lossy
    consoles += lost
    with pytest.raises(LabLost, match="no longer answers"):
        command.test(command.parser().parse_args(["kvm", "test", "--", "tests"]))
    assert len(runs) == len(lost)


INSIDE = """
import pytest

def test_passes(): pass

def test_fails(): assert 0

def test_is_skipped(): pytest.skip()

@pytest.fixture
def broken():
    yield
    assert 0

def test_leaves_something(broken): pass
"""


@pytest.mark.parametrize(
    ("before", "passes"),
    [
        ([], ["test_inside.py::test_passes"]),
        (
            ["test_inside.py::test_pass", "test_inside.py::test_fail"],
            ["test_inside.py::test_passes"],
        ),
        (["test_inside.py::test_fails", "test_inside.py::test_passes"], []),
    ],
)
def test_only_tests_that_passed_are_said_to(tmp_path, before, passes):
    """What passed before is not run again, unlike what has only such a beginning of its name."""
    assert inside(tmp_path, INSIDE, before) == (1, passes)


@pytest.mark.parametrize(("before", "code"), [(["test_inside.py::test_passes"], 0), ([], 5)])
def test_a_lab_may_be_lost_after_its_last_test(tmp_path, before, code):
    """All is well if none is left to run; not if there never was one."""
    text = "def test_passes(): pass" if before else ""
    assert inside(tmp_path, text, before) == (code, [])


def inside(tmp_path, text, before):
    """Run a module of tests as in a lab; return pytest's exit code, and what is said to pass."""
    (tmp_path / "test_inside.py").write_text(text)
    (tmp_path / progress.DONE).write_text("\n".join(before))
    console = tmp_path / "console"
    console.touch()
    script = (
        "import sys, pytest; from contrib.lab import progress;"
        f"progress.CONSOLE = {str(console)!r};"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null'], [progress]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, check=False, timeout=120)
    return done.returncode, progress.passed(console.read_text())
