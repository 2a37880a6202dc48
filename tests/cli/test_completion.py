"""Completion by TAB: in real shells, which ask the program, and in the interactive shell."""

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmcloner_core import Engine
from vmcloner_core.cli.app import Shell
from vmcloner_core.cli.complete import SCRIPTS
from vmcloner_core.cli.completing import FILE_METAVARS, NAMES, candidates
from vmcloner_core.model import Network
from vmcloner_core.pools import Definitions, Pool

SHIPPED = Path(__file__).parents[2] / "templates"


@pytest.fixture
def site(lab):
    """Two fleets, a snapshot, a pool, and settings that name two hosts that aren't there."""
    lab.engine.create("web", "t1", count=12)
    lab.engine.create("db", "t2", count=1)
    (lab.engine.host.snapshots / "web-1" / "clean").mkdir(parents=True)
    (lab.engine.host.snapshots / "web-1" / ".half").mkdir()
    Definitions(lab.engine.host.pools).keep(Pool(name="tests", template="t1"))
    with (lab.folder / "vmcloner.toml").open("a") as settings:
        for name in ("lab1", "lab2"):
            settings.write(f'\n[hosts.{name}]\naddress = "192.0.2.1"\n')
        settings.write('[groups]\nracks = "lab[1-2]"\n')
    return lab


@pytest.fixture
def shells(site, tmp_path, monkeypatch):
    """A program ``vmcloner`` that reads the records of ``site``, for shells."""
    program = tmp_path / "bin" / "vmcloner"
    program.parent.mkdir()
    python = f'exec "{sys.executable}" -m vmcloner_core.cli'
    config = tmp_path / "vmcloner.toml"
    program.write_text(f'#!/bin/sh\nVMCLONER_CONFIG="{config}" {python} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "values.csv").touch()
    monkeypatch.chdir(elsewhere)
    return site


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["lis"], ["list"]),
        (["template", "i"], ["import", "import-legacy"]),
        (["host", "prepare", ""], ["gc", "lvm", "network"]),
        (["snapshot", "revert", "web", "cl"], ["clean"]),
        (["snapshot", "delete", "web", "db-1", "cl"], ["clean"]),
        (["move", "web-1", "lo"], ["local"]),
        (["pool", "fill", ""], ["tests"]),
        (["report", "w"], ["web"]),
        (["report", "--compare", "x", "d"], ["db"]),
        (["cp", "we"], ["web:"]),
        (["cp", "web-2"], ["web-2:"]),
        (["inventory", "--host", "d"], ["db-1"]),
        (["ssh-config", "--refresh", "d"], ["db-1"]),
        (["host", "undrain", "la"], ["lab1", "lab2"]),
        (["create", "x", "--hosts", "lab1,la"], ["lab1,lab1", "lab1,lab2"]),
        (["--without", "@"], ["@racks"]),
        (["create", "x", "--template=debian-12-"], ["--template=debian-12-built"]),
        (["create", "x", "--template", "=", "debian-12-"], ["debian-12-built"]),
        (["create", "--count=3", "--template=tiny", "d"], ["db"]),
        (["start", "--jobs", "=", "3", "w"], ["web"]),
        (["list", "--state", "="], None),
        (["wait", "web", "--for", "cl"], ["cloud-init"]),
        (["help", "cre"], ["create"]),
        (["start", ""], ["db", "web"]),
        (["start", "web-1"], ["web-1", "web-10", "web-11", "web-12"]),
        (["start", "web-["], ["web-[1-12]"]),
        (["start", "db", "w"], ["web"]),
        (["start", "--jobs", "3", "w"], ["web"]),
        (["ssh", "db"], ["db-1"]),
        (["ssh", "db-1", ""], []),
        (["console", "--log", "d"], ["db-1"]),
        (["create", "d"], ["db"]),
        (["create", "x", "-t", "debian-12-"], ["debian-12-built"]),
        (["create", "x", "--storage", ""], ["reference"]),
        (["create", "x", "-e", ""], ["reference"]),
        (["host", "check", ""], ["reference"]),
        (["template", "show", "tiny"], ["tiny", "tiny-xen"]),
        (["list", "-f", ""], ["csv", "json", "table", "value", "yaml"]),
        (["list", "-c", "na"], ["name"]),
        (["list", "--state", "ru"], ["running"]),
        (["list", "--st"], ["--state"]),
        (["wait", "web", "--for", "s"], ["ssh"]),
        (["exec", "web", "--", "we"], []),
        (["--host", ""], ["lab1", "lab2", "local"]),
        (["--host", "local", "ssh", "d"], ["db-1"]),
        (["-q", "exe"], ["exec"]),
        (["--conf"], ["--config"]),
        (["frobnicate", ""], []),
        (["delete", "'we"], ["web"]),
        (["--config", "/nonexistent", "ssh", ""], []),
    ],
)
def test_words(site, run, words, found):
    code, out, err = run("complete", "--words", "--", *words)
    assert (code, err) == (0, "")
    if found is None:  # what follows the sign of --state= in bash
        assert "running" in out.splitlines()
    else:
        assert out == "".join(f"{word}\n" for word in found)


def test_names_that_are_none_are_not_completed(run, tmp_path, monkeypatch):
    """Another user's folder may have files of any name; in quotes, a shell runs what is in one."""
    for name in ("a$(touch pwned)", 'a"; touch pwned "', "a\x1b]0;b\x07", "a\nb", "ab"):
        (tmp_path / "templates" / f"{name}.toml").touch()
    monkeypatch.chdir(tmp_path)
    words = ("create", "x", "-t", '"a')
    assert run("complete", "--words", "--", *words)[1].split() == [
        "ab",
        *sorted(file.stem for file in SHIPPED.glob("a*.toml")),
    ]
    listed = run("template", "list", "-f", "value", "-c", "name")[1].splitlines()
    assert [name for name in listed if "b" in name and name < "b"] == ["ab"]


def test_a_file_is_left_to_the_shell(run):
    assert run("complete", "--words", "--", "create", "x", "--values", "") == (1, "", "")


def test_no_hypervisor_is_asked(lab, run, monkeypatch):
    """So it is fast, whatever the hypervisor does."""
    lab.engine.create("web", "t1", count=1)
    monkeypatch.setattr(lab.engine, "survey", None)
    monkeypatch.setattr(lab.machines, "inspect", None)
    assert run("complete", "--words", "--", "ssh", "") == (0, "web-1\n", "")


def test_networks_are_those_of_this_machine(run, lab, monkeypatch):
    class Networks:
        def inspect(self):
            return tuple(Network(name=name, active=True) for name in ("lab7", "a$(touch pwned)"))

    monkeypatch.setattr(lab.machines, "networks", Networks(), raising=False)
    monkeypatch.setattr("vmcloner_core.cli.completing.ANSWERS_WITHIN", 60)  # it ends when it has
    words = ("complete", "--words", "--", "host", "remove", "network", "--name", "")
    assert run(*words) == (0, "lab7\nvmcloner\n", "")


def test_a_hypervisor_that_hangs_is_not_waited_for(run, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(Engine, "networks", lambda _self: hanging.wait(60) and ())
    monkeypatch.setattr("vmcloner_core.cli.completing.ANSWERS_WITHIN", 0.01)
    words = ("complete", "--words", "--", "host", "remove", "network", "--name", "")
    assert run(*words) == (0, "vmcloner\n", "")
    hanging.set()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[hosts", ["ssh", ""]),
        ("[hosts", ["host", "drain", ""]),
        ("[hosts", ["host", "remove", "network", "--name", "x"]),
        ("state = 7", ["start", ""]),
        ("", ["--host", "nowhere", "start", ""]),
        ("", ["snapshot", "revert", ""]),
        ("", ["start", "'"]),
        ("", []),
    ],
)
def test_nothing_is_said_where_something_is_wrong(run, lab, settings, words):
    with (lab.folder / "vmcloner.toml").open("a") as file:
        file.write(settings)
    lab.engine.host.state.mkdir(exist_ok=True)
    (lab.engine.host.state / "identity").touch()  # a file where a folder should be
    assert run("complete", "--words", "--", *words)[::2] == (0, "")


def test_a_command_that_is_broken_says_nothing(run, distribution):
    distribution("broken", {"vmcloner.cli": {"sad": "raise SystemExit('no')"}})
    assert run("complete", "--words", "--", "sad", "") == (0, "", "")


def test_an_option_on_a_line_is_not_an_option_of_the_shell(lab):
    """The interactive shell goes on with its own settings after a TAB."""
    shell = Shell()
    shell.options = argparse.Namespace(config=None, host=None)
    candidates(shell, ["--host", "other", "start", ""])
    assert shell.options.host is None


# --- every argument of every command ------------------------------------------------------------

THINGS = re.compile(
    r"(?i)\b(?:clone|fleet|target|template|pool|network|snapshot|host|lab|run|storage|hypervisor"
    r"|backend|name)s?\b"
)
NAMES_NOTHING_THAT_EXISTS = {
    ("list", "owner"),  # a user
    ("create", "per_host"),  # a number
    ("plugin new", "name"),  # a new one
    ("template import-legacy", "name"),  # a new one
    ("host prepare lvm", "thinpool"),  # LVM's
    ("host prepare lvm", "vg"),  # LVM's
}


def arguments():
    """Yield each command's name with each of its arguments that has a value."""
    shell = Shell()
    shell.options = argparse.Namespace(config=None, host=None, verbose_level=1)
    for words, _ in sorted(shell.command_manager):
        factory, name, _ = shell.command_manager.find_command(words.split())
        for action in factory(shell, shell.options, cmd_name=name).get_parser(name)._actions:
            if action.nargs != 0 and type(action).__module__ != "cliff.columns":
                yield name, action


def test_every_argument_that_takes_a_name_is_completed():
    """Those that name something by their own name, or by what the help calls their value."""
    found, lacking = set(), []
    for command, action in arguments():
        words = f"{action.dest} {action.metavar or ''} {' '.join(action.option_strings)}"
        takes = THINGS.search(re.sub(r"[^a-zA-Z]+", " ", words)) is not None
        file = action.type is Path or action.metavar in FILE_METAVARS
        if (
            action.choices is not None
            or file
            or (command, action.dest) in NAMES_NOTHING_THAT_EXISTS
        ):
            continue
        if action.dest in NAMES:
            found.add(action.dest)
        elif takes and action.type is None:
            lacking.append(f"{command}: {action.dest}")
    assert lacking == []
    assert found == set(NAMES), "completions that no command has"


def in_bash(*words):
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        "source <(vmcloner complete --shell bash)\n"
        f"COMP_WORDS=(vmcloner {quoted}); COMP_CWORD={len(words)}\n"
        '_vmcloner; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    return ["bash", "--norc", "-c", script]


def in_zsh(*words):
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        "compdef() { :; }; _files() { print -l *; }\n"
        # In a shell without its line editor there is no compadd; this prints what it would add.
        'compadd() { local last=${@[-1]}; print -l -- "${(@P)last}"; }\n'
        "source <(vmcloner complete --shell zsh)\n"
        f"words=(vmcloner {quoted}); CURRENT={len(words) + 1}\n_vmcloner\n"
    )
    return ["zsh", "-f", "-c", script]


def in_fish(*words):
    line = "vmcloner " + " ".join(words)
    script = f"vmcloner complete --shell fish | source; complete -C '{line}'"
    return ["fish", "--no-config", "-c", script]


@pytest.mark.parametrize("shell", [in_bash, in_zsh, in_fish])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ssh", "web-1"], {"web-1", "web-10", "web-11", "web-12"}),
        (["start", "web-["], {"web-[1-12]"}),
        (["start", ""], {"db", "web"}),
        (["snapshot", "revert", "web", "cle"], {"clean"}),
        (["host", "drain", "lab"], {"lab1", "lab2"}),
        (["pool", "empty", ""], {"tests"}),
        (["cp", "we"], {"web:"}),
        (["create", "x", "-t", "debian-12-"], {"debian-12-built"}),
        (["templ"], {"template"}),
        (["create", "x", "--values", "val"], {"values.csv"}),
        (["ssh", "nothing-"], set()),
    ],
)
def test_real_shells(shells, shell, words, found, tmp_path, monkeypatch):
    argv = shell(*words)
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} isn't installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr == ""
    said = {line.split("\t")[0].replace("\\", "") for line in done.stdout.splitlines() if line}
    if shell is in_bash and words[-1] == "val":
        assert said == set()  # readline completes the file
    else:
        assert said == found


def test_bash_is_given_words_that_it_does_not_expand(shells):
    done = subprocess.run(
        in_bash("start", "web-["), capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "web-\\[1-12\\]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_can_be_parsed(run, shell):
    code, out, _ = run("complete", "--shell", shell)
    assert (code, out) == (0, SCRIPTS[shell])
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} isn't installed")
    done = subprocess.run([shell, "-n"], input=out, text=True, timeout=60, check=False)
    assert done.returncode == 0


def test_mistakes(run):
    assert run("complete", "web")[0] == 2
    assert run("complete", "--shell", "tcsh")[0] == 2
    assert "--words" not in run("complete", "--help")[1]


def test_the_interactive_shell_completes_names(shells):
    """On a terminal of its own, with TAB; it has a prompt, a greeting and no commands of cmd2."""
    ours, theirs = pty.openpty()
    # The first terminal that the leader of a session opens is the one whose Ctrl-C interrupts it.
    argv = ["sh", "-c", 'exec vmcloner <"$0" >"$0" 2>&1', os.ttyname(theirs)]
    shell = subprocess.Popen(argv, start_new_session=True)
    said = b""

    def until(text):
        nonlocal said
        end = time.monotonic() + 60
        while text not in said and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                said += os.read(ours, 65536)
        assert text in said, said

    try:
        until(b"vmcloner> ")
        assert said.startswith(b"vmcloner ")
        os.write(ours, b"template show debian-12-b\t")
        until(b"debian-12-built")
        os.write(ours, b"\n")
        until(b"unknown storage backend 'reference'")
        os.write(ours, b"show db\t")
        until(b"show db-1 ")
        for _ in range(4):
            os.write(ours, b"\x03")
            time.sleep(0.1)
        os.write(ours, b"\x15shell ls\n'\nexit\n")
        until(b"no command 'shell'")
        until(b"No closing quotation")
        assert shell.wait(60) == 0
    finally:
        shell.kill()
        os.close(ours)
        os.close(theirs)
    assert b"Traceback" not in said
