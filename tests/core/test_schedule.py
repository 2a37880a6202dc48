"""host prepare gc: a timer of systemd, or cron; nothing of others is touched."""

import json
import shutil
import stat
import subprocess

import pytest

from vmcloner_core import schedule
from vmcloner_core.errors import BackendError, Conflict, HostCommandError, InvalidRequest
from vmcloner_core.process import CommandResult
from vmcloner_core.schedule import LABEL, Places, Schedule

COMMAND = ("/opt/my vmcloner/bin/vmcloner", "--config", '/etc/50%/"a"$b\\c.toml', "gc", "--yes")


class Systemd:
    """Keeps what systemctl was asked for; ``fail`` is the word of the call that fails."""

    def __init__(self):
        self.calls, self.enabled, self.fail = [], False, None

    def run(self, argv, **_options):
        self.calls.append(argv[1])
        if argv[1] == self.fail:
            raise HostCommandError("no")
        if argv[1] in ("enable", "disable"):
            self.enabled = argv[1] == "enable"
        state = ("enabled", "active") if self.enabled else ("", "inactive")
        text = f"UnitFileState={state[0]}\nActiveState={state[1]}\nNeedDaemonReload=no\n"
        return CommandResult(stdout=text.encode(), stderr=b"")

    def which(self, program):
        return program


@pytest.fixture
def places(tmp_path):
    for name in ("booted", "cron"):
        (tmp_path / name).mkdir()
    return Places(booted=tmp_path / "booted", units=tmp_path / "units", cron=tmp_path / "cron")


@pytest.fixture
def cron(places):
    places.booted.rmdir()
    return places


def test_a_timer_is_made_once_and_removed(places):
    systemd = Systemd()
    timer = Schedule(systemd, places)
    planned = timer.prepare(COMMAND, 300, dry_run=True)
    assert not places.units.exists()
    done = timer.prepare(COMMAND, 300)
    assert (done, done.by, len(done.steps)) == (planned, "systemd", 5)
    texts = {path.name: path.read_text() for path in done.files}
    assert all(text.startswith(LABEL) for text in texts.values())
    assert "OnUnitInactiveSec=300\n" in texts["vmcloner-gc.timer"]
    assert systemd.calls[-3:] == ["daemon-reload", "enable", "restart"]
    assert timer.prepare(COMMAND, 300).steps == ()
    assert timer.prepare(COMMAND, 600).steps != ()
    assert timer.remove(dry_run=True).steps != ()
    timer.remove()
    assert systemd.calls[-2:] == ["disable", "daemon-reload"]
    assert list(places.units.iterdir()) == []
    assert timer.remove().steps == ()


@pytest.mark.parametrize("word", ["daemon-reload", "enable", "restart"])
def test_what_was_cut_off_is_completed_by_the_same_again(places, word):
    systemd = Systemd()
    systemd.fail = word
    with pytest.raises(HostCommandError):
        Schedule(systemd, places).prepare(COMMAND)
    systemd.fail = None
    if word == "restart":
        systemd.enabled = False  # it is, but not active
    assert Schedule(systemd, places).prepare(COMMAND).steps != ()
    assert Schedule(systemd, places).prepare(COMMAND).steps == ()


@pytest.mark.parametrize("name", ["vmcloner-gc.timer", "vmcloner-gc.service"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_files_of_others_are_left(places, tmp_path, name, kind):
    places.units.mkdir()
    path, mine = places.units / name, tmp_path / "mine"
    mine.write_text(LABEL)
    if kind == "file":
        path.write_text("[Unit]\n")
    elif kind == "link":
        path.symlink_to(mine)
    else:
        path.mkdir()
    systemd = Systemd()
    for call in (
        lambda: Schedule(systemd, places).prepare(COMMAND),
        Schedule(systemd, places).remove,
    ):
        with pytest.raises(Conflict, match="isn't vmcloner's"):
            call()
    assert [entry.name for entry in places.units.iterdir()] == [name]
    assert (systemd.calls, mine.read_text()) == ([], LABEL)


def test_cron_where_systemd_does_not_run(cron):
    timer = Schedule(Systemd(), cron)
    done = timer.prepare(COMMAND, 900)
    [path] = done.files
    assert (done.by, path.name) == ("cron", "vmcloner-gc")
    label, line = path.read_text().splitlines()
    assert f"{label}\n" == LABEL
    assert line.startswith("*/15 * * * * root '/opt/my vmcloner/bin/vmcloner' --config ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    words = line.split(" root ")[1].replace("\\%", "%")  # as cron does
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {words}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert tuple(said.stdout.splitlines()) == COMMAND
    assert timer.prepare(COMMAND, 900).steps == ()
    cron.booted.mkdir()  # systemd was installed later
    assert Schedule(Systemd(), cron).prepare(COMMAND).by == "systemd"
    assert not path.exists()


@pytest.mark.parametrize(
    ("every", "fields"),
    [(60, "*/1 * * * *"), (1800, "*/30 * * * *"), (3600, "0 */1 * * *"), (86_400, "0 0 * * *")],
)
def test_times_of_cron(cron, every, fields):
    [path] = Schedule(Systemd(), cron).prepare(COMMAND, every).files
    assert f"\n{fields} root " in path.read_text()


@pytest.mark.parametrize("every", [0, 59, 86_401, 420, 90, 5 * 3600])
def test_times_that_are_refused(cron, every):
    with pytest.raises(InvalidRequest):
        Schedule(Systemd(), cron).prepare(COMMAND, every)
    assert list(cron.cron.iterdir()) == []


def test_a_host_without_both(cron):
    cron.cron.rmdir()
    with pytest.raises(BackendError, match="neither systemd nor cron"):
        Schedule(Systemd(), cron).prepare(COMMAND)


@pytest.mark.parametrize("word", ["a\nb", "a\x1bb"])
def test_words_that_cannot_be_written(places, word):
    with pytest.raises(InvalidRequest, match="can't be written"):
        Schedule(Systemd(), places).prepare(("vmcloner", word))


def test_systemd_reads_the_files(places, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / 'a "b"' / "vm%cloner"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = Schedule(Systemd(), places).prepare((str(program), *COMMAND[1:]))
    argv = ["systemd-analyze", "verify", "--man=no", *map(str, done.files)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    ours = [line for line in (said.stdout + said.stderr).splitlines() if "vmcloner-gc" in line]
    assert ours == [], said


def test_the_commands(lab, run, cron, monkeypatch):
    monkeypatch.setattr(Places, "own", classmethod(lambda _cls: cron))
    monkeypatch.setattr(schedule, "LocalRunner", Systemd, raising=False)
    code, out, err = run("host", "prepare", "gc", "--every", "1h", "--dry-run", "-f", "json")
    assert (code, json.loads(out)["by"]) == (0, "cron")
    assert list(cron.cron.iterdir()) == []
    assert run("host", "prepare", "gc", "--orphans")[0] == 0
    text = (cron.cron / "vmcloner-gc").read_text()
    assert f"--config {lab.folder}/vmcloner.toml gc --expired --orphans --yes" in text
    assert "no change" in run("host", "prepare", "gc", "--orphans")[2]
    assert run("host", "remove", "gc")[0] == 0
    assert list(cron.cron.iterdir()) == []
    code, _out, err = run("host", "prepare", "gc", "--every", "7min")
    assert code == InvalidRequest.exit_code
    assert len(err.splitlines()) == 1
