"""Tables for people, and the same facts for programs."""

import argparse
import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import attrs
import pytest
from cliff.formatters.json_format import JSONFormatter

from vmcloner_core import State
from vmcloner_core.cli.formats import WholeJson, lines
from vmcloner_core.cli.listing import KEYS, LEASE_KEYS
from vmcloner_core.units import format_age


def change(lab, name, **changes):
    machines = lab.machines.machines
    machines[name] = attrs.evolve(machines[name], **changes)


def test_two_hundred_clones_are_two_hundred_lines_of_80_columns(run):
    run("create", "web", "-t", "t1", "-n", "200", "--start")
    out = run("list")[1]
    head, *rows, last = out.splitlines()
    assert head.split() == ["name", "state", "ip", "template", "age", "problem"]
    assert [row.split()[0] for row in rows] == [f"web-{n}" for n in range(1, 201)]
    assert last == "200 clones in 1 fleet: 200 running"
    assert max(map(len, out.splitlines())) <= 80


def test_what_is_wrong_is_said(run, lab):
    run("create", "web", "-t", "t1", "-n", "4", "--start")
    del lab.machines.machines["web-1"]
    lab.pool.disks.pop("web-2-disk0")
    change(lab, "web-3", state=State.CRASHED, reason="panicked")
    found = {line.split()[0]: line for line in run("list")[1].splitlines()}
    assert found["web-1"].endswith("unfinished: run its create again")
    assert found["web-2"].endswith("its disk is gone: run its create again")
    assert found["web-3"].endswith("crashed: panicked")
    assert found["web-4"].endswith(" s")
    assert (
        "4 clones in 1 fleet: 1 allocated, 1 running, 1 crashed, 1 orphan; 3 with a problem"
        in (run("list")[1])
    )


def test_states_and_fleets(run, lab):
    run("create", "web", "-t", "t1", "-n", "3", "--start")
    run("create", "db", "-t", "t2")
    out = run("list", "--state", "running", "-f", "value", "-c", "name")[1]
    assert out.split() == ["web-1", "web-2", "web-3"]
    out = run("list", "--state", "running", "--state", "stopped", "-f", "json")[1]
    assert len(json.loads(out)) == 4
    assert run("list", "--state", "paused")[1:] == (
        "", "vmcloner: no clone is paused (4 clones: vmcloner list)\n",
    )  # fmt: skip
    assert run("list", "--state", "runing")[2] == (
        "vmcloner: argument --state: invalid choice: 'runing' (did you mean 'running'?)\n"
    )
    assert run("list", "--fleets")[1] == (
        "fleet  template  clones  stopped  running\n"
        "db     t2             1        1        0\n"
        "web    t1             3        0        3\n"
        "4 clones in 2 fleets: 1 stopped, 3 running\n"
    )
    rows = json.loads(run("list", "--fleets", "-f", "json")[1])
    assert list(rows[0]) == ["fleet", "template", "clones", *(state.value for state in State)]
    assert (rows[1]["fleet"], rows[1]["running"], rows[1]["paused"]) == ("web", 3, 0)


def test_programs_get_no_totals_and_all_keys(run):
    run("create", "web", "-t", "t1", "-n", "2")
    for form in ("json", "yaml", "csv", "value"):
        assert "2 clones" not in run("list", "-f", form)[1]
    assert list(json.loads(run("list", "-f", "json")[1])[0]) == [*KEYS, *LEASE_KEYS]
    wide = run("list", "--wide")[1].splitlines()[0].split()
    assert set(KEYS) < set(wide)
    assert run("list", "-c", "name")[1] == "name\nweb-1\nweb-2\n"


def test_an_age_of_no_time_is_none(run, lab):
    run("create", "web", "-t", "t1")
    change(lab, "web-1", labels=attrs.evolve(lab.engine.show("web-1").labels, created="long ago"))
    assert run("list", "-f", "value", "-c", "name", "-c", "age")[1] == "web-1 \n"
    assert "long ago" in run("show", "web-1")[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (86400 * 400, "400 d")],
)
def test_ages(seconds, text):
    assert format_age(seconds) == text


def test_show_is_for_people_and_for_programs(run):
    run("create", "web", "-t", "t1", "--start")
    out = run("show", "web-1")[1]
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines() if "  " in line)
    assert found["memory"] == "256 MiB"
    assert found["disks"] == "/reference/web-1-disk0 (1 MiB, raw, pool reference)"
    assert (found["vcpus"], found["user"], found["port"]) == ("1", "root", "22")
    assert found["ssh"].startswith("not now: web-1: no address is known")
    assert re.search(r"Z \(\d+ s ago\)$", found["created"])
    shown = json.loads(run("show", "web-1", "-f", "json")[1])
    assert shown["memory"] == 256 * 1024**2
    assert shown["ssh"] is None
    assert shown["vcpus"] == 1


def test_show_has_the_ssh_line_and_the_uptime(run, lab, monkeypatch):
    run("create", "web", "-t", "t1", "--start")
    monkeypatch.setattr(lab.machines, "addresses", lambda: {"web-1": ("192.0.2.7",)})
    monkeypatch.setattr(lab.machines, "started", lambda _name: time.time() - 7300, raising=False)
    (lab.engine.host.records / "web-1" / "known_hosts").write_text("web-1 ssh-ed25519 AAAA\n")
    out = run("show", "web-1")[1]
    assert re.search(r"^uptime +2 h$", out, re.MULTILINE)
    assert "-o HostName=192.0.2.7 -o Port=22 -o User=root -o HostKeyAlias=web-1" in out
    assert 7300 <= json.loads(run("show", "web-1", "-f", "json")[1])["uptime"] < 7400


def test_template_show_hides_nothing(run, lab):
    lab.template(
        "full",
        'swap = "1MiB"\nmemory = "3GiB"\n[image]\npath = "image.raw"\n[[disks]]\nsize = "4GiB"\n'
        '[ssh]\nuser = "admin"\nport = 2222\n[identity]\nhostname = "h{{ index }}"\n'
        '[values]\nrole = "db"\n',
    )
    out = run("template", "show", "full")[1]
    for line in (
        "memory +3 GiB", "swap +1 MiB", "disks +4 GiB, empty",
        "ssh +user: admin", " +port: 2222", r" +hostname: h\{\{ index \}\}", "values +role: db",
    ):  # fmt: skip
        assert re.search(f"^{line}$", out, re.MULTILINE), line
    shown = json.loads(run("template", "show", "full", "-f", "json")[1])
    assert shown["ssh"] == {"user": "admin", "port": 2222, "key": None}
    assert shown["disks"] == [{"size": 4 * 1024**3, "content": "empty"}]
    (row,) = csv.DictReader(io.StringIO(run("template", "show", "full", "-f", "csv")[1]))
    assert row["ssh"] == "user=admin port=2222 key="


def test_lists_of_templates_and_plugins_show_what_people_need(run, lab):
    assert run("template", "list")[1].splitlines()[0].split() == ["name", "imported", "description"]
    lab.template("bad", "boot = 1")
    assert run("template", "list")[1].splitlines()[0].split()[-1] == "error"
    assert "file" in run("template", "list", "--wide")[1].splitlines()[0].split()
    head = run("plugin", "list")[1].splitlines()[0].split()
    assert head == ["name", "kind", "state", "description"]


def test_a_table_fits_if_it_can():
    rows = [("web-1", "a long text of several words", 7), ("web-2-with-a-name", "", 12)]
    assert list(lines(("name", "text", "n"), rows, 0)) == [
        "name               text                           n",
        "web-1              a long text of several words   7",
        "web-2-with-a-name                                12",
    ]
    narrow = list(lines(("name", "text", "n"), rows, 36))
    assert max(map(len, narrow)) <= 36
    assert narrow[1].split() == ["web-1", "a", "long", "text", "7"]
    assert narrow[-1].startswith("web-2-with-a-name ")
    least = list(lines(("name", "text", "n"), rows, 1))
    assert "web-2-with-a-name" in least[-1]  # names are never cut


def test_watch_needs_a_terminal(run):
    code, out, err = run("list", "--watch")
    assert (code, out) == (2, "")
    assert err == "vmcloner: --watch needs a terminal, and no other format than table\n"


def test_watch_on_a_terminal(tmp_path):
    """It draws again and again, fits the terminal, and ends with 0 at Ctrl-C."""
    config = tmp_path / "vmcloner.toml"
    config.write_text(f'[hosts.local]\nstate = "{tmp_path}"\n[defaults]\nhypervisor = "none"\n')
    program = "from tests.cli.watched import main; import sys; sys.exit(main(['list', '--watch']))"
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "80", "LINES": "12", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(theirs)
    said, end = b"", time.monotonic() + 60
    while said.count(b"\x1b[H") < 2 and time.monotonic() < end:
        if select.select([ours], [], [], 1)[0]:
            said += os.read(ours, 65536)
    shell.send_signal(signal.SIGINT)
    try:
        assert shell.wait(60) == 0
    finally:
        shell.kill()
        os.close(ours)
    first = said.decode().split("\x1b[H")[1].replace("\x1b[K", "").splitlines()
    assert first[0].split() == ["name", "state", "ip", "template", "age", "problem"]
    assert first[9].startswith("… 22 more lines")
    assert first[10] == "30 clones in 1 fleet: 30 running"


def test_one_is_not_plural(run, lab):
    assert "1 clone created in" in run("create", "web", "-t", "t1")[2]
    assert "1 clone in 1 fleet: 1 stopped" in run("list")[1]
    assert "1 clone to delete" in run("delete", "web", "--dry-run")[2]


def every_command():
    """Return each command's name and parser."""
    from importlib import metadata

    from vmcloner_core.cli.app import Shell

    shell = Shell()
    shell.options, _ = shell.parser.parse_known_args([])
    for entry in metadata.entry_points(group="vmcloner.cli"):
        name = entry.name.replace("_", " ")
        yield name, entry.load()(shell, None, cmd_name=name).get_parser(f"vmcloner {name}")


def test_a_letter_means_the_same_in_all_commands():
    """``-c`` is --column everywhere, ``-n`` is --count."""
    meanings = {}
    for name, parser in every_command():
        for action in parser._actions:
            long = [option for option in action.option_strings if option.startswith("--")]
            for option in action.option_strings:
                if not option.startswith("--"):
                    meanings.setdefault(option, {}).setdefault(long[0], []).append(name)
    assert {option for option, found in meanings.items() if len(found) > 1} == set(), meanings
    assert list(meanings["-c"]) == ["--column"]
    assert list(meanings["-n"]) == ["--count"]


def test_a_number_for_c_still_counts_with_a_warning(run, lab):
    """As in earlier versions: scripts go on working."""
    counting = [name for name, p in every_command() if "--count" in p._option_string_actions]
    assert {"create", "start", "stop", "restart", "reset", "delete"} < set(counting)
    code, out, err = run("create", "web", "-t", "t1", "-c", "3", "-f", "json", "-c", "name")
    assert code == 0
    assert [list(row) for row in json.loads(out)] == [["name"]] * 3
    warning = "vmcloner: -c 3 is taken as --count 3: write -n 3, -c is for --column\n"
    assert err.startswith(warning)
    assert len(lab.engine.list("web")) == 3
    code, out, err = run("delete", "web", "-c2", "--yes")
    assert (code, len(lab.engine.list("web"))) == (0, 1)
    assert "--count 2" in err
    assert run("list", "-c", "3")[0] == 2


@pytest.mark.parametrize("words", [("create", "web", "-t", "t1"), ("template", "import", "t1")])
def test_a_misspelt_column_is_refused_before_anything_is_done(run, lab, words):
    code, _, err = run(*words, "-f", "json", "-c", "nmae")
    assert code == 2
    assert "no column 'nmae'" in err
    assert lab.engine.list() == ()
    assert lab.pool.images == {}


class Counted(io.StringIO):
    """A stream that counts what is written to it."""

    writes = 0

    def write(self, text):
        self.writes += 1
        return super().write(text)


@pytest.mark.parametrize("noindent", [False, True])
def test_json_of_one_record_is_written_at_once_too(noindent):
    asked = argparse.Namespace(noindent=noindent)
    record = (("name", "volumes"), ("web-1", ["a", "b"]))
    stream, by_cliff = Counted(), Counted()
    WholeJson().emit_one(*record, stream, asked)
    JSONFormatter().emit_one(*record, by_cliff, asked)
    assert stream.getvalue() == by_cliff.getvalue()
    assert stream.writes == 1


@pytest.mark.parametrize("noindent", [False, True])
def test_json_is_written_at_once(noindent):
    """Each write is a system call where Python doesn't buffer; a list has thousands of words."""
    asked = argparse.Namespace(noindent=noindent)
    rows = [(f"web-{number}", None, ["a", "b"]) for number in range(100)]
    stream, by_cliff = Counted(), Counted()
    WholeJson().emit_list(("name", "ip", "volumes"), rows, stream, asked)
    JSONFormatter().emit_list(("name", "ip", "volumes"), rows, by_cliff, asked)
    assert stream.getvalue() == by_cliff.getvalue()
    assert stream.writes == 1


def test_commands_write_json_at_once(run, monkeypatch):
    used = []
    emit = WholeJson.emit_list
    monkeypatch.setattr(WholeJson, "emit_list", lambda *a: (used.append(a), emit(*a)))
    assert json.loads(run("list", "-f", "json")[1]) is not None
    assert used
