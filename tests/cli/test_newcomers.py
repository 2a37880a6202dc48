"""What newcomers stumbled over: each message has its reason and the next step."""

import io
import json
import re
import signal
import threading
import time

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core import State
from vmcloner_core.cli.app import Shell
from vmcloner_core.cli.formats import PlainTable
from vmcloner_core.cli.host import next_command
from vmcloner_core.cli.listing import List, frame
from vmcloner_core.errors import HostCommandError, NotFound
from vmcloner_core.model import Check, Needs, Status
from vmcloner_core.plugins import PluginHost
from vmcloner_core.process import LocalRunner
from vmcloner_core.units import counted


def change(lab, name, **changes):
    machines = lab.machines.machines
    machines[name] = attrs.evolve(machines[name], **changes)


def of_another_folder(lab, *names, state="f" * 32):
    """Let clones belong to another state folder."""
    for name in names:
        labels = attrs.evolve(lab.engine.show(name).labels, state=state)
        change(lab, name, labels=labels)
        disk = f"{name}-disk0"
        lab.pool.disks[disk] = attrs.evolve(lab.pool.disks[disk], labels=labels)


@pytest.mark.parametrize(("state", "code"), [("f" * 32, 0), (None, 10)])
def test_a_pool_that_the_settings_lack_is_missed_only_for_own_clones(lab, run, state, code):
    """Clones without an id are every folder's: nobody knows what that pool has of them."""
    run("create", "web", "-t", "t1", "-n", "2", "--start")
    labels = attrs.evolve(lab.engine.show("web-1").labels, state=state, storage="elsewhere")
    change(lab, "web-1", labels=labels)
    del lab.pool.disks["web-1-disk0"]
    assert run("list")[0] == code


# --- fleets in several states -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "words", "word", "left"),
    [
        ("pause", "resume", "resumed", "stopped"),
        ("save", "restore", "restored", "stopped"),
        (None, "pause", "paused", "stopped"),
        (None, "save", "saved", "stopped"),
    ],
)
def test_a_fleet_with_stopped_members(run, prepare, words, word, left):
    run("create", "web", "-t", "t1", "-n", "3", "--start")
    run("stop", "web-2", "--kill")
    if prepare:
        assert run(prepare, "web-[1,3]")[0] == 0
    for target in ("web", "--all"):
        code, _, err = run(words, target)
        assert code == 0, err
        assert f"web-2 is {left}: left" in err
        if target == "web":
            assert f"2 clones {word}, 1 unchanged" in err
    code, _, err = run(words, "web-2")
    assert code == 10  # it was named
    run("stop", "web", "--kill")
    assert run(words, "web")[0] == 10  # there is nothing else that it could be for


def test_paused_members_are_left_by_restore(run, lab):
    run("create", "web", "-t", "t1", "-n", "2", "--start")
    run("save", "web-1")
    run("pause", "web-2")
    code, _, err = run("restore", "web")
    assert code == 0
    assert "web-2 is paused: left" in err
    assert lab.engine.show("web-2").state is State.PAUSED


# --- commands and options -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["creat", "web", "-t", "t1"], "create"),
        (["delet", "web", "--yes"], "delete"),
        (["template", "lis"], "template list"),
        (["templ", "list"], "template list"),
        (["host", "prepare", "net"], "host prepare network"),
    ],
)
def test_a_command_is_never_guessed(run, lab, words, meant):
    run("create", "web", "-t", "t1")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "no command" in err
    assert meant.split()[-1] in err
    assert len(lab.engine.list()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--state", "runing"], "invalid choice: 'runing' (did you mean 'running'?)"),
        (["list", "-f", "jsn"], "invalid choice: 'jsn' (did you mean 'json'?)"),
        (["show", "web-1", "-f", "yml"], "invalid choice: 'yml' (did you mean 'yaml'?)"),
        (
            ["create", "web", "-t", "t1", "--on-failure", "rolback"],
            "invalid choice: 'rolback' (did you mean 'rollback'?)",
        ),
        (["inventory", "web", "--format", "ansibel"], "(did you mean 'ansible'?)"),
        (["template", "import", "t1", "--image-format", "qcow"], "(did you mean 'qcow2'?)"),
        (["complete", "--shell", "bsh"], "(did you mean 'bash'?)"),
        (["create", "web", "-t", "t1", "--statr"], "--statr (did you mean '--start'?)"),
        (["list", "--state", "blue"], "invalid choice: 'blue' (choose from "),
        (["list", "--xyzzy"], "--xyzzy (vmcloner list --help)"),
        (["template", "delete", "t1", "--yes"], "--yes (vmcloner template delete --help)"),
    ],
)
def test_misspelt_values_and_options(run, words, message):
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_help_fits_the_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands = [line.strip() for line in run("--help")[1].partition("Commands:")[2].splitlines()]
    names = [line.partition("  ")[0] for line in commands if line]
    assert "list" in names
    for name in names:
        long = [line for line in run("help", *name.split())[1].splitlines() if len(line) > 80]
        assert long == [], name


# --- list ---------------------------------------------------------------------------------------


def test_clones_of_other_state_folders_do_not_swamp_the_list(run, lab):
    run("create", "web", "-t", "t1", "-n", "2")
    run("create", "theirs", "-t", "t1", "-n", "30")
    of_another_folder(lab, *(f"theirs-{n}" for n in range(1, 31)))
    out, err = run("list")[1:]
    assert [line.split()[0] for line in out.splitlines()] == ["name", "web-1", "web-2", "2"]
    assert err == "vmcloner: 30 clones of other state folders not shown (vmcloner list --others)\n"
    assert "theirs" not in run("list", "--fleets")[1]
    out, err = run("list", "--others")[1:]
    assert len(out.splitlines()) == 34
    assert "f" * 32 in err
    assert len(run("list", "theirs")[1].splitlines()) == 32
    assert len(json.loads(run("list", "-f", "json")[1])) == 32


def test_fleets_of_other_state_folders_are_not_suggested(run, lab):
    run("create", "theirs", "-t", "t1")
    of_another_folder(lab, "theirs-1")
    assert run("start", "their")[2] == "vmcloner: no fleet 'their' (there are none)\n"
    run("create", "mine", "-t", "t1")
    assert run("start", "their")[2] == "vmcloner: no fleet 'their' (known: mine)\n"


def watched(lab, monkeypatch, lines=24):
    """Return the screen that --watch draws first."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", str(lines))
    shell = Shell()
    shell.options, _ = shell.parser.parse_known_args([])
    command = List(shell, None, cmd_name="list")
    command.formatter, command._watched = PlainTable(), True
    shell._engine, shell.stdout = lab.engine, io.StringIO()
    parsed = command.get_parser("list").parse_args([])
    return frame(command._drawn(parsed)).replace("\033[K", "").splitlines()


def test_a_watched_list_keeps_to_its_screen(run, lab, monkeypatch, capsys):
    """Remarks are a part of what is drawn: on standard error they would end up anywhere."""
    run("create", "web", "-t", "t1", "-n", "2")
    run("create", "theirs", "-t", "t1", "-n", "30")
    of_another_folder(lab, *(f"theirs-{n}" for n in range(1, 31)))
    lines = watched(lab, monkeypatch)
    assert [line.split()[0].removeprefix("\033[H") for line in lines[:3]] == [
        "name",
        "web-1",
        "web-2",
    ]
    assert lines[3] == "30 clones of other state folders not shown (vmcloner list --others)"
    assert lines[4] == "2 clones in 1 fleet: 2 stopped"
    run("delete", "web", "--yes")
    assert "not shown" in watched(lab, monkeypatch)[1]

    def inspect():
        raise HostCommandError("libvirtd is down")

    monkeypatch.setattr(lab.machines, "inspect", inspect)
    assert "libvirtd is down" in "".join(watched(lab, monkeypatch))
    assert capsys.readouterr().err == ""


def test_a_list_of_other_state_folders_clones_alone(run, lab):
    run("create", "theirs", "-t", "t1")
    of_another_folder(lab, "theirs-1")
    code, out, err = run("list")
    assert (code, out) == (0, "")
    assert "1 clone of other state folders not shown" in err


def test_problem_is_a_key(run, lab):
    run("create", "web", "-t", "t1", "-n", "2", "--start")
    change(lab, "web-1", state=State.CRASHED, reason="panicked")
    rows = json.loads(run("list", "-f", "json")[1])
    assert [row["problem"] for row in rows] == ["crashed: panicked", None]
    assert json.loads(run("show", "web-1", "-f", "json")[1])["problem"] == "crashed: panicked"


def test_a_list_that_could_not_be_read_is_not_empty(run, lab, monkeypatch):
    def inspect():
        raise HostCommandError("libvirtd is down")

    monkeypatch.setattr(lab.machines, "inspect", inspect)
    code, out, err = run("list")
    assert (code, out) == (10, "")
    assert "libvirtd is down" in err
    assert "no clones yet" not in err
    assert len(err.splitlines()) == 1


def test_dry_runs_tell_the_mac_addresses(run, lab):
    run("create", "web", "-t", "t1", "--start")
    mac = lab.engine.show("web-1").mac
    for words in (["delete", "web"], ["set", "web", "--vcpus", "2"], ["stop", "web"]):
        (row,) = json.loads(run(*words, "--dry-run", "-f", "json")[1])
        assert row["mac"] == mac, words


# --- templates ----------------------------------------------------------------------------------


def test_the_checks_of_a_template_are_the_templates(run):
    assert run("template", "check", "t1")[1].split()[:2] == ["template", "check"]
    (row, *_) = json.loads(run("template", "check", "t1", "-f", "json")[1])
    assert next(iter(row)) == "backend"
    assert run("template", "check", "t1", "-c", "template", "-f", "value")[0] in (0, 2)


def test_before_the_first_build_nothing_is_wrong(run):
    rows = json.loads(run("template", "check", "tiny", "-f", "json")[1])
    domain = next(row for row in rows if row["check"] == "domain")
    assert "vmlinuz" not in domain["detail"]


def test_create_and_template_check_exit_alike(run, lab, monkeypatch):
    def check(_spec):
        raise NotFound("no bridge 'br9'", hint="make it")

    monkeypatch.setattr(lab.machines, "check_domain", check)
    assert run("create", "web", "-t", "t1")[0] == 4
    assert run("template", "check", "t1")[0] == 4
    monkeypatch.setattr(lab.machines, "check_domain", lambda _spec: Needs())
    assert run("template", "check", "t1")[0] == 0


def test_prune_is_not_kept_by_another_folders_clones(run, lab):
    lab.template("old", TEMPLATE)
    run("create", "theirs", "-t", "old")
    of_another_folder(lab, "theirs-1")
    built = lab.engine.host.templates / "old"
    built.mkdir(parents=True)
    (lab.folder / "templates" / "old.toml").unlink()
    run("template", "prune", "--yes")
    assert not built.exists()


def test_ctrl_d_at_prunes_question(run, lab, monkeypatch):
    lab.template("old", TEMPLATE)
    run("template", "import", "old")
    (lab.folder / "templates" / "old.toml").unlink()

    class Terminal:
        def isatty(self):
            return True

        def readline(self, *_):
            return ""

    monkeypatch.setattr("builtins.input", ctrl_d)
    code, out, err = run("template", "prune", stdin=Terminal())
    assert (code, out) == (130, "")
    assert err == "vmcloner: nothing was removed\n"
    assert lab.engine.origins("old")


def ctrl_d(_question):
    raise EOFError


# --- plugins ------------------------------------------------------------------------------------


VETO = """
    from vmcloner_core.errors import VmclonerError
    from vmcloner_core.hooks import hookimpl

    @hookimpl
    def vmcloner_preflight(plan):
        raise VmclonerError("not on Sundays", hint="ask Bob")
"""
BROKEN = """
    from vmcloner_core.hooks import hookimpl

    @hookimpl
    def vmcloner_step_changed(event):
        raise ValueError("no space on the whiteboard")

    @hookimpl
    def vmcloner_clone_ready(clone):
        raise ValueError("no space on the whiteboard")
"""


def test_a_veto_names_its_plugin(run, lab, distribution):
    distribution("rules", "vmcloner.observer", sundays=VETO)
    lab.engine.plugins.load_observers()
    code, _, err = run("create", "web", "-t", "t1")
    assert code == 3
    assert err == "vmcloner: not on Sundays; a veto of 'sundays' of rules (ask Bob)\n"
    assert lab.engine.list() == ()


def test_a_broken_observer_is_told_once(distribution, caplog):
    distribution("board", "vmcloner.observer", whiteboard=BROKEN)
    host = PluginHost()
    host.load_observers()
    for clone in range(5):
        host.clone_ready("run", f"web-{clone}")
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "observer 'whiteboard' of board failed: ValueError" in warnings[0].getMessage()


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_tells_what_was_made(run, lab, monkeypatch):
    """Clones that wait were created and started, though not one is done."""
    lab.template("t3", TEMPLATE.replace("ready name", "never name"))

    def interrupt():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(lab.machines.states()) < 10:
            time.sleep(0.02)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    code, _, err = run("create", "web", "-t", "t3", "-n", "10", "--start", "--wait")
    assert code == 130
    assert "so far: 10 clones created and started" in err
    assert (
        "create: stopped with 0 of 10 clones done, 10 in part (run the same command again)" in err
    )


def test_sizes_for_people_have_units(run, lab):
    lab.template("old", TEMPLATE)
    assert " 1 MiB" in run("template", "import", "old")[1]
    assert json.loads(run("template", "import", "old", "-f", "json")[1])["size"] == 1024**2
    (lab.folder / "templates" / "old.toml").unlink()
    size = json.loads(run("template", "prune", "--dry-run", "-f", "json")[1])[0]["size"]
    assert isinstance(size, int)
    assert re.search(
        r"old +reference +\d+ (B|bytes|[KMG]iB)", run("template", "prune", "--dry-run")[1]
    )


def test_a_console_that_said_nothing(run):
    run("create", "web", "-t", "t1")
    code, out, err = run("console", "web-1", "--log")
    assert (code, out) == (0, "")
    assert "web-1 has said nothing on its console since its last start" in err


def test_what_is_counted_has_its_plural():
    assert [counted(n, "copy") for n in (0, 1, 2)] == ["0 copies", "1 copy", "2 copies"]
    assert [counted(n, "key") for n in (1, 2)] == ["1 key", "2 keys"]


# --- what to type next --------------------------------------------------------------------------


def check(name, **more):
    return Check(backend="kvm", name=name, status=Status.FAILED, **more)


def test_host_check_ends_with_the_next_command(run, lab, monkeypatch):
    """For people only: nothing is added to what programs read."""
    assert "next:" not in "".join(run("host", "check")[1:])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "next:" not in "".join(run("host", "check", "-f", "json")[1:])
    assert "next:" not in "".join(run("--quiet", "host", "check")[1:])
    monkeypatch.setattr(LocalRunner, "which", lambda _self, _program: None)
    assert run("host", "check")[2].endswith("next: vmcloner template pull debian-13\n")
    monkeypatch.setattr(LocalRunner, "which", lambda _self, program: f"/usr/bin/{program}")
    assert "next: vmcloner create web -t tiny -n 3 --start --wait" in run("host", "check")[2]
    run("template", "import", "t1")
    assert "next: vmcloner create web -t t1 -n 3 --start --wait" in run("host", "check")[2]
    run("create", "web", "-t", "t1")
    assert "next: vmcloner list\n" in run("host", "check")[2]


def test_what_failed_comes_first(lab, monkeypatch):
    failed = [check("access", fix="chmod o+x /srv"), check("daemon", setup=True)]
    assert next_command(lab.engine, failed[:1]) == "chmod o+x /srv"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert next_command(lab.engine, failed) == "vmcloner host setup"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert next_command(lab.engine, failed) == "sudo vmcloner host setup"
