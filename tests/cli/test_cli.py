"""The command shell on the reference drivers: words in, exit codes and formats out."""

import contextlib
import csv
import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import attrs
import pytest
import yaml

from tests.conftest import TEMPLATE
from vmcloner_core import Engine, State
from vmcloner_core.cli.app import main
from vmcloner_core.errors import HostCommandError

LIST_KEYS = [
    "name", "fleet", "index", "state", "template", "hypervisor",
    "storage", "host", "mac", "ip", "created", "volumes", "reason", "problem",
    "owner", "expires",
]  # fmt: skip


def test_a_fleets_life(run, lab):
    code, out, err = run("create", "web", "-t", "t1", "-n", "3", "--wait")
    assert (code, out) == (0, "")
    assert "3 clones created, started and ready in" in err
    rows = json.loads(run("list", "web", "-f", "json")[1])
    assert [list(row) for row in rows] == [LIST_KEYS] * 3
    assert [row["name"] for row in rows] == ["web-1", "web-2", "web-3"]
    assert {row["state"] for row in rows} == {"running"}
    assert rows[0]["ip"] is None
    assert run("stop", "web-[1-2]")[0] == 0
    assert run("restart", "web-1", "--kill", "--wait")[0] == 0
    assert run("start", "--all")[0] == 0
    assert run("wait", "web", "--for", "running")[0] == 0
    assert run("delete", "web", "--yes")[0] == 0
    assert lab.engine.list() == ()


def test_every_format_has_the_same_keys(run):
    run("create", "web", "-t", "t1", "-n", "2")
    from_csv = list(csv.DictReader(io.StringIO(run("list", "-f", "csv")[1])))
    from_yaml = yaml.safe_load(run("list", "-f", "yaml")[1])
    assert list(from_csv[0]) == LIST_KEYS
    assert sorted(from_yaml[0]) == sorted(LIST_KEYS)
    assert from_yaml[0]["ip"] is None
    assert from_csv[0]["ip"] == ""
    assert run("list", "-f", "value", "-c", "name", "-c", "state")[1] == (
        "web-1 stopped\nweb-2 stopped\n"
    )
    assert "None" not in run("list")[1]


def test_show(run, lab):
    run("create", "web", "-t", "t1")
    shown = json.loads(run("show", "web-1", "-f", "json")[1])
    assert shown["uuid"] == str(lab.engine.show("web-1").domain.uuid)
    assert shown["volumes"] == ["web-1-disk0"]
    assert shown["disks"] == [
        {"path": "/reference/web-1-disk0", "size": 1024**2, "format": "raw", "pool": "reference"}
    ]
    (from_csv,) = csv.DictReader(io.StringIO(run("show", "web-1", "-f", "csv")[1]))
    assert list(from_csv) == list(shown)
    assert from_csv["uuid"] == shown["uuid"]
    assert "path=/reference/web-1-disk0 size=1048576" in run("show", "web-1", "-f", "value")[1]
    assert run("show", "web-1", "--xml")[1] == "<domain><name>web-1</name></domain>\n"
    code, _, said = run("show", "web-1", "--show-xl")
    assert code == 3
    assert "web-1: hypervisor 'reference' has no native format (vmcloner show web-1 --xml)" in said


def test_a_hypervisor_without_consoles(run, lab):
    run("create", "web", "-t", "t1", "--start")
    lab.machines.consoles = None
    assert json.loads(run("show", "web-1", "-f", "json")[1])["console_log"] == ""
    code, _, said = run("console", "web-1", "--log")
    assert code == 8
    assert "web-1: hypervisor 'reference' has no consoles (vmcloner ssh web-1)" in said


def test_console_log(run):
    run("create", "web", "-t", "t1", "--start")
    assert run("console", "web-1", "--log")[1] == "ready name=web-1 \n"
    code, _, err = run("console", "web-1")
    assert (code, "--log" in err) == (2, True)


def test_dry_run_prints_the_plan_and_changes_nothing(run, lab):
    code, out, err = run(
        "create", "web", "-t", "t1", "-n", "2", "--start", "--dry-run", "-f", "json"
    )
    rows = json.loads(out)
    assert code == 0
    assert [row["steps"] for row in rows] == ["clone,define,start"] * 2
    assert "512 MiB of memory" in err
    assert lab.engine.list() == ()
    run("create", "web", "-t", "t1")
    assert json.loads(run("delete", "web", "--dry-run", "-f", "json")[1])[0]["name"] == "web-1"
    assert len(lab.engine.list()) == 1


def test_partial_failure_is_a_table_and_10(run, lab):
    lab.pool.fail["web-2"] = HostCommandError("disk on fire")
    code, out, err = run("create", "web", "-t", "t1", "-n", "3")
    assert code == 10
    assert "web-2" in out
    assert "disk on fire" in out
    assert "web-1" not in out
    assert "1 of 3 clones failed" in err
    (log,) = (lab.folder / "state" / "runs").iterdir()
    assert str(log) in err
    lab.pool.fail["web-4"] = HostCommandError("again")
    rows = json.loads(run("create", "web", "-t", "t1", "-n", "4", "-f", "json")[1])
    assert {row["name"]: row["status"] for row in rows} == {"web-2": "ok", "web-4": "failed"}


def test_rollback(run, lab):
    lab.machines.fail["define", "web-2"] = HostCommandError("no")
    assert run("create", "web", "-t", "t1", "-n", "2", "--on-failure", "rollback")[0] == 10
    assert lab.engine.list() == ()
    lab.machines.fail["define", "web-2"] = HostCommandError("no")
    lab.machines.fail["undefine", "web-1"] = HostCommandError("no")
    assert run("create", "web", "-t", "t1", "-n", "2", "--on-failure", "rollback")[0] == 11


def test_delete_asks_where_somebody_can_answer(run, lab, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    run("create", "web", "-t", "t1", "-n", "2")
    assert run("delete", "web")[0] == 2
    questions = []
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or "n")
    assert run("delete", "web", stdin=Terminal())[0] == 130
    assert "web-[1-2]" in questions[0]
    assert len(lab.engine.list()) == 2

    def end(_text):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert run("delete", "web", stdin=Terminal())[0] == 130
    assert len(lab.engine.list()) == 2
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert run("delete", "web", stdin=Terminal())[0] == 0
    assert lab.engine.list() == ()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["create", "web", "-t", "tt1"], 4, "did you mean 't1'"),
        (["create", "web-1", "-t", "t1"], 3, "looks like a clone"),
        (["create", "web", "-t", "t1", "-n", "0"], 3, "count must be 1 to 10000, not 0\n"),
        (["create", "web", "-t", "t1", "-n", "10001"], 3, "split a larger fleet"),
        (["create", "web", "-t", "t1", "-n", "two"], 2, "int value: 'two' (vmcloner create --help"),
        (["create", "web", "-t", "t1", "--min-ready", "150%"], 3, "150%"),
        (
            ["create", "web", "-t", "t1", "--wait", "--for", "ip"],
            3,
            "no network card that gets an address",
        ),
        (["create", "web", "-t", "t1", "-n", "1", "--add", "1"], 2, "not allowed with"),
        (["create", "web", "-t", "t1", "--hypervisor", "ref"], 4, "unknown hypervisor 'ref'"),
        (["create", "web", "-t", "t1", "-e", "kvm"], 3, "hypervisor 'kvm' isn't set up"),
        (["create", "web"], 2, "-t"),
        (["create", "web", "-t", "t1", "--wait", "--for", "console:["], 3, "console:["),
        (["start"], 3, "start needs a target (name a fleet"),
        (["delete"], 3, "delete needs a target"),
        (["start", "web", "--all"], 3, "not both"),
        (["list", "[["], 3, "not a target"),
        (["--config", "/nonexistent", "frobnicate"], 2, "no command 'frobnicate'"),
        (["lst"], 2, "did you mean 'list'"),
        (["help", "frobnicate"], 2, "no command 'frobnicate' (vmcloner --help lists them)"),
        (["foo"], 2, "no command 'foo' (vmcloner --help lists them)"),
        (["craete", "web", "-t", "tiny"], 2, "no command 'craete' (did you mean 'create'?)"),
        (["template", "shwo", "x"], 2, "no command 'template shwo' (did you mean 'template show'?"),
        (["host", "prepare", "netwrk"], 2, "(did you mean 'host prepare network'?)"),
        (["plugin"], 2, "no command 'plugin' (known: plugin list, new)"),
        (["template", "xyzzy"], 2, "no command 'template xyzzy' (known: template capture, ch"),
        (["--frobnicate"], 2, "no option --frobnicate"),
        (["--frobnicate", "list"], 2, "no option --frobnicate"),
        (["audit"], 3, "audit needs a target"),
        (["host", "check", "nope"], 4, "nope"),
        (["list", "-c", "nam"], 2, "no column 'nam' (did you mean 'name'?)"),
        (["create", "web", "-t", "t1", "--wait", "--timeout", "nan"], 3, "timeout must be"),
    ],
)
def test_mistakes(run, words, code, message):
    got, _, err = run(*words)
    assert message in err
    assert got == code
    assert err.startswith("vmcloner: ")
    assert len(err.splitlines()) == 1


def test_mistakes_about_what_there_is(run):
    run("create", "web", "-t", "t1", "-n", "3")
    assert "no fleet 'db' (known: web)" in run("start", "db")[2]
    for words in (("show",), ("ssh",), ("console", "--log")):
        code, _, err = run(*words, "web")
        assert code == 4
        assert err == "vmcloner: 'web' is a fleet, not a clone (its clones: web-[1-3])\n"
    assert "no clone 'web-4' (did you mean 'web-" in run("show", "web-4")[2]
    code, _, err = run("create", "web", "-t", "t1", "-n", "2")
    assert code == 0
    assert "web already has 3 clones; create removes none (vmcloner delete web -n 1)" in err
    assert "(vmcloner start web-2 --wait)" in run("wait", "web")[1]


def test_what_became_of_all_is_said(run):
    create = ("create", "web", "-t", "t1", "--wait", "-n")
    assert "2 clones created, started and ready in" in run(*create, "2")[2]
    assert "2 clones ready in" in run(*create, "2")[2]
    assert "1 clone created, started and ready, 2 ready in" in run(*create, "3")[2]
    assert "3 clones stopped in" in run("stop", "web")[2]
    assert "3 clones started and ready in" in run("start", "web", "--wait")[2]
    assert "3 clones ready in" in run("start", "web", "--wait")[2]
    assert "0 clones started, 3 unchanged in" in run("start", "web")[2]
    assert "3 clones ready in" in run("wait", "web")[2]
    assert "3 clones restarted and ready in" in run("restart", "web", "--wait")[2]
    add = ("create", "web", "-t", "t1", "--add", "1", "--wait")
    assert "1 clone created, started and ready, 3 ready in" in run(*add)[2]
    run("stop", "web-[1-2]")
    assert "2 clones started and ready, 2 ready in" in run("start", "web", "--wait")[2]
    run("stop", "web-[1-2]")
    assert "1 clone started and ready, 2 unchanged in" in run("start", "web", "-n1", "--wait")[2]
    assert "1 clone started, 3 unchanged in" in run("start", "web", "-n", "3")[2]
    for more in ((), ("--wait",)):
        assert "0 clones started, 4 unchanged in" in run("start", "web", "-n", "3", *more)[2]
    assert "4 clones deleted in" in run("delete", "web", "--yes")[2]


def test_one_that_somebody_else_started_is_not_counted_as_started(run, lab, monkeypatch):
    run("create", "web", "-t", "t1", "-n", "2")
    start = lab.machines.start

    def raced(names, *boots):
        machines = lab.machines.machines
        machines["web-1"] = attrs.evolve(machines["web-1"], state=State.RUNNING)
        return start(names, *boots)

    monkeypatch.setattr(lab.machines, "start", raced)
    assert "1 clone started, 1 unchanged in" in run("start", "web")[2]


def test_what_is_not_there_cannot_be_deleted(run, lab):
    assert run("delete", "nope", "--yes", "--missing-ok")[0] == 0
    assert run("delete", "nope", "--yes")[0] == 4
    run("create", "web", "-t", "t1", "-n", "2")
    for more in (("--yes",), ("--dry-run",)):
        code, _, err = run("delete", "wbe", *more)
        assert code == 4
        assert "no fleet 'wbe' (did you mean 'web'?; --missing-ok if that is fine)" in err
        assert "web-7" in run("delete", "web-7", *more)[2]
        assert run("delete", "web-7", *more, "--missing-ok")[0] == 0
    assert len(lab.engine.list()) == 2
    assert run("delete", "wbe", "web-[1,3]", "--dry-run")[0] == 4
    code, _, err = run("delete", "wbe", "web-[1,3]", "--yes")  # what a killed run left to do
    assert code == 4
    assert "no fleet 'wbe'" in err
    assert [clone.name for clone in lab.engine.list()] == ["web-2"]
    lab.engine.delete("nope")  # the library's is idempotent


def test_an_image_that_is_nowhere_is_missed_by_a_dry_run_too(run, lab):
    lab.template("gone", TEMPLATE.replace("image.raw", "gone.raw"))
    for more in ((), ("--dry-run",)):
        code, _, err = run("create", "web", "-t", "gone", *more)
        assert code == 4
        assert "gone.raw of template gone doesn't exist (vmcloner template import gone" in err


def test_an_empty_list_is_a_sentence(run):
    code, out, err = run("list")
    assert (code, out) == (0, "")
    assert err == (
        "vmcloner: there are no clones yet (vmcloner create web -t tiny -n 3 --start --wait)\n"
    )
    assert run("--quiet", "list") == (0, "", "")
    assert run("list", "-f", "json") == (0, "[]\n", "")


def test_debug_shows_the_traceback(lab, monkeypatch, capsys):
    monkeypatch.setattr(Engine, "open", classmethod(lambda _cls, **_: lab.engine))
    assert main(["--debug", "show", "gone-1"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_templates(run, lab):
    rows = json.loads(run("template", "list", "-f", "json")[1])
    assert {"t1", "t2", "tiny", "debian-12"} <= {row["name"] for row in rows}
    assert json.loads(run("template", "import", "t1", "-f", "json")[1])["changed"] is True
    assert json.loads(run("template", "import", "t1", "-f", "json")[1])["changed"] is False
    assert json.loads(run("template", "show", "t1", "-f", "json")[1])["imported"] == ["reference"]
    assert run("template", "check", "t1")[0] == 0
    assert run("template", "delete", "t1")[0] == 0
    lab.template("bad", "[image]\npath = 'gone.raw'\nboot = 1")
    assert run("template", "check", "bad")[0] == 3
    lab.template("gone", "hypervisors = ['kvm']\n[image]\npath = 'gone.raw'")
    code, out, _ = run("template", "check", "gone", "-f", "json")
    assert code == 4
    assert {row["check"] for row in json.loads(out) if row["status"] == "failed"} == {
        "image", "boot",
    }  # fmt: skip


def test_host_check_and_plugin_list(run):
    rows = json.loads(run("host", "check", "-f", "json")[1])
    assert {row["status"] for row in rows} == {"ok"}
    rows = json.loads(run("plugin", "list", "-f", "json")[1])
    found = {(row["name"], row["kind"]): row for row in rows}
    assert found["kvm", "hypervisor"]["distribution"] == "vmcloner"
    assert found["kvm", "hypervisor"]["api"] == 1
    assert found["create", "cli"]["api"] is None
    assert found["create", "cli"]["state"] == "ok"


def test_the_run_log_has_every_step(run, lab):
    run("create", "web", "-t", "t1", "-n", "2", "--start")
    (file,) = (lab.folder / "state" / "runs").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["event"] == "plan"
    assert lines[-1]["event"] == "result"
    done = {(line["clone"], line["step"]) for line in lines if line.get("status") == "done"}
    assert {("web-2", "clone"), ("web-2", "define"), ("web-2", "start"), ("t1", "import")} <= done
    assert all(line["seconds"] >= 0 for line in lines if line["event"] == "step")


def test_a_log_file_has_steps(run, lab, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    file = lab.folder / "log"
    run("--log-file", str(file), "create", "web", "-t", "t1", "--start")
    assert "web-1 start done" in file.read_text()
    run("--log-file", str(file), "--quiet", "stop", "web")
    assert "web-1 shutdown done" in file.read_text()


HEAVY = {
    "ClusterShell", "cattrs", "cmd2", "cryptography", "jinja2", "libvirt", "lxml", "pycdlib",
    "rich", "urllib3", "yaml",
}  # fmt: skip


def imported_by(*words, environment=None):
    """Return what a command line prints, and the modules that it has imported at its end."""
    program = (
        "import sys; from vmcloner_core.cli.app import main\n"
        f"code = main({list(words)!r})\n"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *said, modules = done.stderr.splitlines()
    assert all(line.startswith("vmcloner: ") for line in said)
    return done.stdout, set(modules.split())


@pytest.mark.parametrize("words", [["--help"], ["help"], ["create", "--help"], ["list", "--help"]])
def test_help_imports_nothing_heavy(words):
    """What help costs is what it imports."""
    out, modules = imported_by(*words)
    assert "usage: vmcloner" in out
    assert not modules & HEAVY


def test_the_program_collects_garbage_seldom_from_its_first_import_on():
    """What is imported stays: looking through it again and again took a tenth of a create."""
    program = (
        "import gc, sys; before = gc.get_threshold()[0]\n"
        "from vmcloner_core.cli.__main__ import main\n"
        "assert 'cliff' not in sys.modules\n"
        "import atexit; atexit.register(lambda: print(gc.get_threshold()[0] > 10 * before))\n"
        "sys.argv = ['vmcloner', '--version']; main()\n"
    )
    done = in_python(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"vmcloner \S+\nTrue\n", done.stdout)


def in_python(program, **options):
    argv = [sys.executable, "-c", program]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(argv, text=True, timeout=60, check=False, **options)


ENDING = """
import sys, threading
from vmcloner_core.cli.__main__ import main

class Freed:
    def __del__(self):
        print("freed")

freed = Freed()
sys.argv = ["vmcloner", *{words!r}]
{before}
sys.exit(main())
"""


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["nonsense"], 2)])
def test_the_program_ends_without_freeing_what_it_made(words, code):
    """All modules and classes: that took as long as reading the settings."""
    done = in_python(ENDING.format(words=words, before=""))
    assert done.returncode == code
    assert done.stdout + done.stderr != ""
    assert "freed" not in done.stdout


def test_the_program_waits_for_its_threads():
    """As Python does; only those that hang are left."""
    late = "threading.Timer(1, print, ['late']).start()"
    done = in_python(ENDING.format(words=["--version"], before=late))
    assert done.returncode == 0
    assert "late\n" in done.stdout


def redirected(tmp_path, words, how):
    """Run a command line with streams that a shell opens or closes, buffered as users have it."""
    (tmp_path / "a.toml").write_text(f'[hosts.local]\nstate = "{tmp_path}/state"\n')
    vmcloner = Path(sys.executable).with_name("vmcloner")
    argv = ["sh", "-c", f'exec "$@" {how}', "sh", str(vmcloner), "--config", "a.toml", *words]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=env
    )


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("lab", "example")])
@pytest.mark.parametrize(
    ("how", "reason"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
def test_what_cannot_be_written_is_one_line_and_no_success(tmp_path, words, how, reason):
    done = redirected(tmp_path, words, how)
    assert (done.returncode, done.stderr) == (9, f"vmcloner: standard output: {reason}\n")


def test_a_command_that_has_nothing_to_write_needs_no_output(tmp_path):
    done = redirected(tmp_path, ("nonsense",), ">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("vmcloner: no command 'nonsense'")


@pytest.mark.parametrize("words", [("--version",), ("lab", "example"), ("plugin", "list")])
def test_who_reads_no_longer_hears_nothing_of_it(tmp_path, words):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = redirected(tmp_path, words, f">/proc/{os.getpid()}/fd/{writer}")
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "code"), [(("--version",), 0), (("plugin", "list"), 0), (("nonsense",), 2)]
)
def test_without_standard_error_nothing_is_said_there(tmp_path, words, code):
    done = redirected(tmp_path, words, "<&- 2>&-")
    assert (done.returncode, done.stdout != "") == (code, code == 0)


def test_help_imports_no_command():
    out, modules = imported_by("--help")
    assert "\n  list                    List clones\n" in out
    assert "\n  host prepare lvm        Make an LVM thin pool for clones" in out
    assert not modules & {
        "attr",
        "vmcloner_core.cli.base",
        "vmcloner_core.plan",
        "vmcloner_lvm.cli",
    }


SELDOM = {
    "configparser", "difflib", "vmcloner_core.machine", "vmcloner_core.pool_filling",
    "vmcloner_core.readiness", "vmcloner_core.reports", "vmcloner_core.run_events",
    "vmcloner_core.template_leftovers", "vmcloner_core.transfers", "vmcloner_libvirt.doctor",
}  # fmt: skip
"""What neither list nor create uses."""


@pytest.fixture
def paper(tmp_path):
    """The options for settings with libvirt's test driver, and a template with an image."""
    pytest.importorskip("libvirt")
    config = tmp_path / "vmcloner.toml"
    config.write_text(
        f'[hosts.local]\nstate = "{tmp_path / "state"}"\n'
        '[hosts.local.hypervisor.kvm]\nuri = "test:///default"\n'
    )
    (tmp_path / "templates").mkdir()
    template = tmp_path / "templates" / "bench.toml"
    template.write_text('hypervisors = ["kvm"]\n[image]\npath = "bench.img"\n')
    (tmp_path / "templates" / "bench.img").write_bytes(bytes(1024**2))
    return "--config", str(config)


def test_list_imports_only_what_lists(paper):
    out, modules = imported_by(*paper, "list")
    assert out == ""
    assert {"libvirt", "vmcloner_files.driver"} <= modules
    assert not modules & (HEAVY - {"cattrs", "libvirt", "lxml"})
    assert modules & {*SELDOM, "vmcloner_libvirt.rendering"} == set()


def test_create_imports_only_what_creates(paper, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # which has the templates
    imported_by(*paper, "template", "import", "bench")
    _, modules = imported_by(*paper, "create", "web", "-t", "bench", "-n", "2")
    assert {"libvirt", "vmcloner_files.driver", "vmcloner_libvirt.rendering"} <= modules
    assert not modules & (HEAVY - {"cattrs", "jinja2", "libvirt", "lxml"})
    assert modules & SELDOM == set()


def test_help_of_commands_that_others_bring(distribution):
    """Help runs no module whose source says what the command does, and survives all others."""
    described = """
        raise RuntimeError("imported")

        class Command:
            '''Do something good. And more.

            Much more.
            '''
    """
    bare = "raise RuntimeError\n\nclass Command:\n    pass\n"
    distribution("acme", group="vmcloner.cli", fine=described, bare=bare, gone="", odd="class (")
    path = os.pathsep.join(sys.path)
    out, _ = imported_by("--help", environment={**os.environ, "PYTHONPATH": path})
    commands = out.partition("Commands:\n")[2].splitlines()
    said = dict(line.split(maxsplit=1) for line in commands)
    assert said["fine"] == "Do something good. And more"
    assert {said[name] for name in ("bare", "gone", "odd")} == {"broken (vmcloner plugin list)"}
    assert said["list"] == "List clones"


def test_commands_that_others_bring(distribution, run):
    hello = """
        from vmcloner_core.cli.base import Table

        class Command(Table):
            '''Greet clones.'''

            def take_action(self, parsed_args):
                return ("name",), [(clone.name,) for clone in self.engine.list()]
    """
    distribution("acme", group="vmcloner.cli", greet_all=hello, bad="raise OSError('no')")
    run("create", "web", "-t", "t1")
    assert run("greet", "all", "-f", "value") == (0, "web-1\n", "")
    code, _, err = run("bad")
    assert (code, err) == (
        8,
        "vmcloner: command 'bad' is broken: OSError: no (vmcloner plugin list)\n",
    )
    rows = json.loads(run("plugin", "list", "-f", "json")[1])
    found = {
        row["name"]: (row["distribution"], row["state"]) for row in rows if row["kind"] == "cli"
    }
    assert found["greet all"] == ("acme", "ok")
    assert found["bad"] == ("acme", "broken")


def test_a_strangers_command_does_not_replace_a_shipped_one(distribution, run, monkeypatch):
    other = """
        from vmcloner_core.cli.base import Base

        class Command(Base):
            def take_action(self, parsed_args):
                print("mine")
    """
    distribution("acme", group="vmcloner.cli", list=other, greet=other, none="Command = dict")
    distribution("rival", group="vmcloner.cli", greet=other, leaves="raise SystemExit(3)")
    run("create", "web", "-t", "t1")
    # Of other tests' commands: they write to streams that are closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    code, out, err = run("list", "-f", "value", "--column", "name")
    assert (code, out) == (0, "web-1\n")
    assert err.count("command 'list' of acme is refused: vmcloner itself brings one") == 1
    code, _, err = run("greet")
    assert code == 8
    assert "command 'greet' comes from acme and rival (uninstall one of them)" in err
    assert run("leaves")[::2] == (
        8,
        "vmcloner: command 'leaves' is broken: SystemExit: 3 (vmcloner plugin list)\n",
    )
    rows = json.loads(run("plugin", "list", "-f", "json")[1])
    found = {(row["name"], row["distribution"]): row["state"] for row in rows}
    assert found["list", "vmcloner"] == "ok"
    assert found["list", "acme"] == "duplicate"
    assert {found["greet", "acme"], found["greet", "rival"]} == {"duplicate"}
    assert {found["none", "acme"], found["leaves", "rival"]} == {"broken"}


def test_interactive(tmp_path):
    """Commands that are typed share the global options of the program."""
    config = tmp_path / "vmcloner.toml"
    config.write_text("[hosts.far]\n")
    ours, theirs = os.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-m", "vmcloner_core.cli", "--config", str(config), "--host", "nope"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.write(ours, b"list\nquit\n")
    try:
        said = shell.communicate(timeout=60)[0].decode(errors="replace")
    finally:
        shell.kill()
        os.close(ours)
        os.close(theirs)
    assert shell.returncode == 0
    assert "vmcloner: unknown host 'nope'" in said
    assert "no option" not in said
    assert "no command" not in said
    assert said.startswith("vmcloner ")  # it greets
    assert "\nvmcloner> " in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[hosts.local.storage.files]\npath = 5\n", "storage.files: path: must be a path, not 5"),
        (
            "[hosts.local.storage.files]\npth = 5\n",
            "storage.files: unknown key 'pth' (did you mean",
        ),
        ('[hosts.local.storage.x]\ndriver = "nope"\n', "storage.x: unknown storage backend 'nope'"),
        ('[hosts.local.hypervisor.x]\ndriver = "nope"\n', "x: unknown hypervisor 'nope'"),
        ("[hosts.local.hypervisor.kvm]\nuri = 5\n", "hypervisor.kvm: uri: must be a string, not 5"),
        ('[defaults]\nstorage = "nope"\n', "storage.nope: unknown storage backend 'nope'"),
        ('[defaults]\nhost = "nope"\n', "defaults.host: unknown host 'nope' (known: local)"),
        ("[limits]\nmemory_overcommit = -1\n", "limits.memory_overcommit: must be > 0"),
        ('defaults = "x"\n', "defaults: must be a table, [defaults], not 'x'"),
        ("frobs = 1\n", "unknown key 'frobs' (did you mean 'groups'?)"),
    ],
)
def test_wrong_settings_have_one_exit_code(tmp_path, monkeypatch, capsys, settings, said):
    pytest.importorskip("libvirt")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "wrong.toml"
    kvm = (
        ""
        if "hypervisor.kvm" in settings
        else '[hosts.local.hypervisor.kvm]\nuri = "test:///default"'
    )
    config.write_text(f'{settings}{kvm}\n[hosts.local]\nstate = "{tmp_path}/state"\n')
    for words in (
        ("list",), ("list", "-f", "json"), ("show", "web-1"), ("console", "web-1", "--log"),
        ("ssh", "web-1"), ("create", "web", "-t", "tiny", "--dry-run"), ("start", "web"),
        ("delete", "web", "--yes"), ("inventory", "--all"), ("host", "check"),
        ("template", "check", "tiny"), ("boot", "resolve", "web"),
    ):  # fmt: skip
        code = main(["--config", str(config), *words])
        captured = capsys.readouterr()
        assert (code, captured.out) == (3, ""), words
        assert captured.err.startswith(f"vmcloner: {config}: "), words
        assert said in captured.err, words
        assert len(captured.err.splitlines()) == 1, words


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user who has no home folder, as in a container that runs as any user."""

    def unknown(_user):
        raise KeyError

    for name in ("HOME", "VMCLONER_CONFIG", *filter(re.compile("XDG_").match, os.environ)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("list",), ("create", "web", "-t", "tiny", "--dry-run"), ("template", "list"),
        ("host", "list"), ("ssh-config", "--install"), ("--config", "a.toml", "list"),
    ],
)  # fmt: skip
def test_a_user_without_a_home_is_told_so(homeless, capsys, words):
    Path("a.toml").touch()
    assert main(words) == 3
    assert capsys.readouterr() == ("", "vmcloner: this user has no home folder (set HOME)\n")


def test_a_user_who_is_not_there_has_no_home(run, lab):
    image = "~nobody-of-that-name/image.raw"
    lab.template("t2", TEMPLATE.replace("image.raw", image))
    run("template", "import", "t1")
    for words in (("import", "t1", "--image", image), ("show", "t2"), ("export", "t1", image)):
        code, _, said = run("template", *words)
        assert (code, len(said.splitlines())) == (3, 1), words
        assert image in said


def test_every_command_has_an_example(run):
    from importlib import metadata

    for entry in metadata.entry_points(group="vmcloner.cli"):
        name = entry.name.replace("_", " ")
        code, out, _ = run(*name.split(), "--help")
        assert code == 0
        assert f"example:\n  vmcloner {name}" in out
        assert len(out.split("\n\n")[1]) > 10, name


HOSTILE = "\x1b]0;owned\x07\x1b[\x1b[2J2J\r\nroot# \x9b2J \u202e"


@pytest.mark.parametrize(
    "words", [["create", "web", "-t", "t1", "-n", "2"], ["delete", "web", "--yes"]]
)
def test_what_a_guest_said_cannot_act_on_the_terminal(lab, run, words):
    error = HostCommandError(f"its console said {HOSTILE}", hint=HOSTILE)
    if words[0] == "create":
        lab.pool.fail["web-1"] = error
    else:
        run("create", "web", "-t", "t1")
        lab.machines.fail["undefine", "web-1"] = error
    code, out, err = run(*words)
    assert code == 10
    assert "\\x1b]0;owned" in out
    for text in (out.replace("\n", ""), err.replace("\n", "")):
        assert text.isprintable()


def test_an_error_is_one_line_whatever_is_in_it(lab, run):
    lab.machines.inspect = lambda: (_ for _ in ()).throw(HostCommandError(f"libvirt: {HOSTILE}"))
    code, _out, err = run("create", "web", "-t", "t1")
    assert code == 8
    (line,) = err.splitlines()
    assert line.isprintable()


@contextlib.contextmanager
def ended_by(number, pool):
    """Send a signal to this process once a pool, which is slow, makes its first volume."""
    made = threading.Event()
    clone_one = pool.clone_one

    def slow(request):
        made.set()
        time.sleep(0.02)
        return clone_one(request)

    pool.clone_one = slow
    end = threading.Thread(target=lambda: made.wait(60) and signal.raise_signal(number))
    end.start()
    yield
    end.join()
    pool.clone_one = clone_one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_ended_says_so_and_what_it_did(lab, run, number):
    """As a CI job is that is cancelled."""
    with ended_by(number, lab.pool):
        code, out, err = run("create", "web", "-t", "t1", "-n", "60")
    assert code == 130
    assert re.search(r"^vmcloner: create: stopped with \d+ of 60 clones done", err, re.MULTILINE)
    assert out == ""  # no line for each that was not made
    assert 0 < len(lab.engine.list()) < 60
    assert run("create", "web", "-t", "t1", "-n", "60")[0] == 0


def test_json_of_a_run_that_is_ended_is_whole(lab, run):
    with ended_by(signal.SIGTERM, lab.pool):
        code, out, err = run("create", "web", "-t", "t1", "--count", "60", "-f", "json")
    assert code == 130
    assert "stopped with" in err
    rows = json.loads(out)
    assert len(rows) == 60
    assert {row["status"] for row in rows} == {"ok", "failed"}


def test_a_second_signal_ends_a_run_whose_driver_hangs(lab, run):
    hung, end = threading.Event(), threading.Event()

    def hangs(_request):
        hung.set()
        end.wait(60)
        raise HostCommandError("too late")

    def twice():
        hung.wait(60)
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.5)

    lab.pool.clone_one = hangs
    sender = threading.Thread(target=twice)
    sender.start()
    code, _out, err = run("create", "web", "-t", "t1", "--count", "60")
    end.set()
    sender.join()
    assert code == 130
    assert re.search(r"^vmcloner: .*stopped.*run the same command again", err, re.MULTILINE)


HELD = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from vmcloner_core.cli import app

def run(self, words):
    ThreadPoolExecutor().submit(time.sleep, 60)
    for _ in range(2):
        try:
            print("waits", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
    print("leaves", flush=True)
    return 130

app.Shell.run = run
sys.exit(app.main(["list"]))
"""


def test_a_third_signal_ends_what_a_call_keeps_from_ending():
    """The interpreter waits for its threads' ends before its own."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in ("waits\n", "waits\n", "leaves\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert err == "\nvmcloner: ended at once (run the same command again)\n"


def test_an_error_of_a_file_is_one_line_with_a_way_out(lab, run, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "/var/lib/vmcloner/x")

    monkeypatch.setattr(lab.engine, "survey", lambda *_targets: full())
    assert run("list") == (
        9,
        "",
        "vmcloner: /var/lib/vmcloner/x: No space left on device "
        "(free space there, then run the same command again)\n",
    )


def test_what_is_interrupted_outside_of_a_run_says_so(lab, run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(lab.machines, "states", interrupted)
    monkeypatch.setattr(lab.engine, "survey", lambda *_targets: interrupted())
    assert run("list") == (130, "", "vmcloner: stopped (run the same command again)\n")


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending():
    """The interpreter joins a thread pool's threads when it ends, however long that takes."""
    program = (
        "import concurrent.futures, sys, threading\n"
        "from vmcloner_core.cli import __main__\n"
        "__main__.LEAVING = 0.2\n"
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"
        "pool.submit(threading.Event().wait)\n"
        "sys.argv = ['vmcloner', '--version']; sys.exit(__main__.main())"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vmcloner ")
