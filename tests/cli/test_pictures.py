"""Pictures of the terminal at 80 columns and 24 lines, made by tmux."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux isn't installed")

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WIDTH, HEIGHT = 80, 24


class Terminal:
    """A shell in a tmux of its own, without anybody's configuration."""

    def __init__(self, folder):
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        path = f"{folder}/bin:{BIN}:/usr/bin:/bin"
        shell = ["env", "-i", f"PATH={path}", "LANG=C.UTF-8", f"HOME={folder}", "TERM=screen",
                 "PS1=$ ", "bash", "--norc", "--noprofile"]  # fmt: skip
        size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
        self._call("new-session", "-d", *size, "-c", str(ROOT), shlex.join(shell))
        self._call("set", "-g", "history-limit", "5000")
        self.until(r"^\$ ?$")

    def _call(self, *words):
        argv = [*self._tmux, *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout

    def type(self, text, *keys):
        """Type a text and then keys by tmux's names."""
        self._call("send-keys", "-l", text)
        if keys:
            self._call("send-keys", *keys)

    def press(self, *keys):
        self._call("send-keys", *keys)

    def picture(self, *, whole=False):
        """Return the lines of the screen, or all since the beginning."""
        start = ["-S", "-"] if whole else []
        return self._call("capture-pane", "-p", *start).rstrip("\n").splitlines()

    def until(self, pattern, seconds=60, *, whole=False):
        """Return the screen, or all since the beginning, once a line has this."""
        end = time.monotonic() + seconds
        while True:
            lines = self.picture(whole=whole)
            if any(re.search(pattern, line) for line in lines):
                return lines
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.05)

    def close(self):
        self._call("kill-server")


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def vmcloner(clones, *words):
    """Return a command line that runs vmcloner with clones on the reference drivers."""
    code = f"from tests.cli.watched import main; raise SystemExit(main({words!r}, clones={clones}))"
    return shlex.join([sys.executable, "-c", code])


def test_a_list_of_two_hundred_clones(terminal):
    terminal.type(f"clear; {vmcloner(200, 'list')}; echo $?", "Enter")
    terminal.until(r"^0$")
    lines = terminal.picture(whole=True)
    start = next(n for n, line in enumerate(lines) if line.startswith("name "))
    rows = lines[start + 1 : start + 201]
    assert lines[start].split() == ["name", "state", "ip", "template", "age", "problem"]
    assert [row.split()[0] for row in rows] == [f"web-{n}" for n in range(1, 201)]
    assert {tuple(row.split()[1:3]) for row in rows} == {("running", "t1")}
    assert lines[start + 201] == "200 clones in 1 fleet: 200 running"  # no line was wrapped


def test_help_in_the_interactive_shell(terminal):
    terminal.type("clear; vmcloner", "Enter")
    terminal.until(r"^vmcloner> ?$")
    terminal.type("help list", "Enter")
    lines = terminal.until(r"^positional arguments:", whole=True)
    text = "\n".join(lines)
    # A line that was too long would go on at the beginning of the next one.
    assert "Shows their states, addresses and ages, and what is wrong with them. --wide\n" in text
    assert max(map(len, lines)) <= WIDTH


def test_a_create_that_waits_and_ctrl_c(terminal):
    words = ("create", "db", "-t", "never", "-n", "20", "--start", "--wait", "--timeout", "60")
    terminal.type(f"clear; {vmcloner(0, *words)}; echo code $?", "Enter")
    lines = terminal.until(r"20 booting.*slowest db-\d+")
    bars = [line.split()[0] for line in lines if "/20" in line]
    assert bars == ["clone", "define", "start", "wait"]
    assert any(re.search(r"^wait +\S+ +0/20 +0:00:\d\d$", line) for line in lines), lines
    assert any(line.startswith("0 of 20 clones ready, 20 booting") for line in lines)
    terminal.press("C-c")
    lines = terminal.until(r"^code 130$")
    shown = [line for line in lines if line and not line.startswith("$")]
    text = "".join(shown)
    assert "vmcloner: stopping" in text
    assert "so far: 20 clones created and started" in text
    assert "create: stopped with 0 of 20 clones done, 20 in part" in text
    assert "(run the same command again)" in text
    assert not any(re.match(r"db-\d+ ", line) for line in lines)  # no row for each clone


def test_completion_of_a_clones_name(terminal, lab):
    lab.engine.create("web", "t1", count=12)
    lab.engine.create("db", "t2", count=1)
    program = lab.folder / "bin" / "vmcloner"
    program.parent.mkdir()
    config = shlex.quote(str(lab.folder / "vmcloner.toml"))
    program.write_text(f'#!/bin/sh\nVMCLONER_CONFIG={config} exec {BIN}/vmcloner "$@"\n')
    program.chmod(0o755)
    terminal.type("source <(vmcloner complete --shell bash); clear", "Enter")
    time.sleep(1)
    terminal.until(r"^\$ ?$")
    terminal.type("vmcloner show db", "Tab")
    lines = terminal.until(r"^\$ vmcloner show db-1 ?$")
    assert len([line for line in lines if line]) == 1
    terminal.press("C-u")
    terminal.type("vmcloner show web-", "Tab", "Tab")
    lines = terminal.until(r"^web-1 +web-")
    names = {word for line in lines for word in line.split() if re.fullmatch(r"web-\d+", word)}
    assert names == {f"web-{n}" for n in range(1, 13)}
