"""Completion by TAB: in real shells, which ask the program, and in the interactive shell."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmcloner_core.cli.complete import SCRIPTS

SHIPPED = Path(__file__).parents[2] / "templates"


@pytest.fixture
def site(lab, tmp_path, monkeypatch):
    """Two fleets on the reference drivers; a program ``vmcloner`` that reads their records."""
    lab.engine.create("web", "t1", count=12)
    lab.engine.create("db", "t2", count=1)
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
    return lab


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["lis"], ["list"]),
        (["template", "i"], ["import", "import-legacy"]),
        (["host", "prepare", ""], ["gc", "lvm", "network"]),
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
        (["--host", ""], ["local"]),
        (["--host", "local", "ssh", "d"], ["db-1"]),
        (["-q", "exe"], ["exec"]),
        (["--conf"], ["--config"]),
        (["frobnicate", ""], []),
        (["delete", "'we"], ["web"]),
        (["--config", "/nonexistent", "ssh", ""], []),
    ],
)
def test_words(lab, run, words, found):
    lab.engine.create("web", "t1", count=12)
    lab.engine.create("db", "t2", count=1)
    assert run("complete", "--words", "--", *words) == (0, "".join(f"{w}\n" for w in found), "")


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
        'compadd() { print -l -- "${(@P)2}"; }\n'
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
        (["templ"], {"template"}),
        (["create", "x", "--values", "val"], {"values.csv"}),
        (["ssh", "nothing-"], set()),
    ],
)
def test_real_shells(site, shell, words, found, tmp_path, monkeypatch):
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


def test_bash_is_given_words_that_it_does_not_expand(site):
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


def test_the_interactive_shell_completes_names(site):
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
