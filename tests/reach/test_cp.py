"""``vmcloner cp`` against real sshd's, and against an SFTP server that means ill."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.reach import hostile_sftp
from vmcloner_core import transfers
from vmcloner_core.errors import Conflict, HostCommandError, Interrupted


@pytest.fixture
def fields(web, run):
    """Run ``cp`` and return its exit code and its rows by clone."""

    def cp(*words):
        code, out, err = run("cp", *words, "-f", "json")
        return code, {row["name"]: row for row in json.loads(out)} if out else err

    return cp


@pytest.fixture
def hostile(guests):
    """Make web-1 serve SFTP as one who means ill."""
    script = guests.folder / "web-1" / "sftp"
    before = script.read_text()

    def serve(mode):
        script.write_text(f"exec '{sys.executable}' '{hostile_sftp.__file__}' {mode}\n")

    yield serve
    script.write_text(before)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_split():
    assert transfers.split("web-[1-3],db-2:/etc/motd") == ("web-[1-3],db-2", "/etc/motd")
    assert transfers.split("web:") == ("web", "")
    assert transfers.split("./a:b") == (None, "./a:b")
    assert transfers.split("/a:b") == (None, "/a:b")
    assert transfers.split("plain") == (None, "plain")


def test_files_to_many(fields, tmp_path):
    """The guests are one machine: what they get is the same file. One has another host key."""
    (tmp_path / "a b;c").write_text("hello")
    (tmp_path / "there").mkdir()
    code, rows = fields("a b;c", f"web:{tmp_path}/there/")
    assert code == 10
    assert [rows[f"web-{n}"]["status"] for n in (1, 2, 3, 4)] == ["ok"] * 3 + ["failed"]
    assert "ost key" in rows["web-4"]["error"]
    assert (rows["web-1"]["files"], rows["web-1"]["size"]) == (1, 5)
    assert (tmp_path / "there" / "a b;c").read_text() == "hello"


def test_a_folder_to_many(fields, tmp_path):
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "sub" / "x").write_text("1")
    (tmp_path / "there").mkdir()
    assert fields("site", "web-1:/tmp")[0] == 3
    code, rows = fields("-r", "site", f"web-[1-2]:{tmp_path}/there")
    assert (code, rows["web-2"]["files"]) == (0, 1)
    assert tree(tmp_path / "there") == {"site", "site/sub", "site/sub/x"}


def test_collected_from_many(fields, tmp_path):
    """Each clone's in a folder of its own; the same command again replaces what is there."""
    source = tmp_path / "source"
    source.mkdir()
    for text in ("one", "another"):
        (source / "log").write_text(text)
        code, rows = fields(f"web-[1-3]:{source}/l*", "out")
        assert code == 0
        assert tree(tmp_path / "out") == {f"web-{n}{e}" for n in (1, 2, 3) for e in ("", "/log")}
        assert (tmp_path / "out" / "web-2" / "log").read_text() == text
    assert rows["web-2"]["path"] == "out/web-2"


def test_folders_are_merged(fields, tmp_path):
    source = tmp_path / "source" / "sub"
    source.mkdir(parents=True)
    (source / "a").write_text("1")
    assert fields("-r", f"web-[1-2]:{source.parent}", "out")[0] == 0
    (source / "a").unlink()
    (source / "b").write_text("2")
    assert fields("-r", f"web-[1-2]:{source.parent}", "out")[0] == 0
    kept = tree(tmp_path / "out" / "web-1")
    assert kept == {"source", "source/sub", "source/sub/a", "source/sub/b"}


@pytest.mark.parametrize(
    ("local", "path"),
    [("out/", "out/log"), ("renamed", "renamed"), ("there", "there/log"), (".", "log")],
)
def test_from_one_clone(fields, tmp_path, local, path):
    """As scp has it: into a folder, or by a new name."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "log").write_text("one")
    (tmp_path / "there").mkdir()
    assert fields(f"web-1:{tmp_path}/source/log", local)[0] == 0
    assert (tmp_path / path).read_text() == "one"
    assert not list(tmp_path.glob(".*.copying"))


def test_a_failed_clone_keeps_nothing(fields, tmp_path):
    code, rows = fields(f"web-[1-4]:{tmp_path}/missing", "out")
    assert code == 10
    assert "o such file" in rows["web-1"]["error"]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_file_in_the_place_of_a_folder_leaves_all_as_it_was(fields, tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "z"):
        (tmp_path / "source" / name).write_text("new")
    (tmp_path / "out" / "web-1" / "source" / "sub" / "b").mkdir(parents=True)
    before = tree(tmp_path / "out" / "web-1")
    code, rows = fields("-r", f"web-[1-2]:{tmp_path}/source", "out")
    assert (code, rows["web-2"]["status"]) == (10, "ok")
    assert (
        "out/web-1/source/sub/b is a folder here, and a file in the guest"
        in (rows["web-1"]["error"])
    )
    assert tree(tmp_path / "out" / "web-1") == before


def test_what_ssh_says_fills_no_disk():
    """A guest's own sshd may send as much for standard error as it likes."""
    with pytest.raises(HostCommandError, match="web-1: scp says more than 64 KiB"):
        transfers._scp(["sh", "-c", "exec yes >&2"], "web-1", 30, threading.Event())


@pytest.mark.parametrize(
    "words", [("a", "b"), ("web:/a", "db:/b"), ("web:/a", "db:/a", "x"), ("a",)]
)
def test_nonsense(fields, words):
    assert fields(*words)[0] == 2


def test_wrong_requests(fields, tmp_path):
    assert fields("missing", "web:/tmp")[0] == 4
    assert fields("web:", "out")[0] == 3
    assert fields("web:/a\nb", "out")[0] == 3
    assert fields("db:/a", "out")[0] == 4
    assert fields("web:/a", "out", "--jobs", "0")[0] == 3
    os.mkfifo(tmp_path / "pipe")
    assert fields("pipe", "web:/tmp")[0] == 3


def test_no_sftp_server(fields, guests, tmp_path):
    script = guests.folder / "web-1" / "sftp"
    before = script.read_text()
    script.write_text("exit 1\n")
    try:
        code, rows = fields("web-1:/etc/hostname", "out")
    finally:
        script.write_text(before)
    assert code == 10
    assert "onnection closed" in rows["web-1"]["error"]


@pytest.mark.parametrize("mode", ["upwards", "glob", "nested", "many", "link", "control"])
@pytest.mark.parametrize("path", ["/x", "/x/*", "/x/.*", "/x/.", "/"])
def test_nothing_gets_out_of_its_folder(fields, hostile, tmp_path, mode, path):
    """Whatever names a guest sends, and whether it succeeds or not."""
    (tmp_path / "beside").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    evil = Path("/tmp/evil.file")
    evil.unlink(missing_ok=True)
    hostile(mode)
    before = tree(tmp_path) - tree(tmp_path / "state")
    fields("-r", "--timeout", "20", f"web-[1]:{path}", "out")
    assert not evil.exists()
    new = {p for p in tree(tmp_path) - before if not p.startswith("state")}
    assert all(p == "out/web-1" or p.startswith("out/web-1/") for p in new), new
    for found in (tmp_path / "out").rglob("*"):
        assert found.is_dir() or stat.S_ISREG(found.lstat().st_mode)
        assert not found.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID) or found.is_dir()
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_names_are_spelled_out(run, web, hostile):
    hostile("control")
    _, out, err = run("cp", "-r", "web-1:/x/missing", "out")
    assert "\x1b" not in out + err


@pytest.mark.parametrize("path", ["/file", "/x"])
def test_endless_files_end_at_the_limit(fields, hostile, tmp_path, path):
    hostile("endless")
    code, rows = fields("-r", "--max-size", "1MiB", f"web-1:{path}", "out/")
    assert code == 10
    assert "1 MiB or more (--max-size SIZE)" in rows["web-1"]["error"]
    assert not tree(tmp_path / "out")


def test_many_files_end_at_the_limit(fields, hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(transfers, "MAX_FILES", 50)
    hostile("many")
    code, rows = fields("-r", "web-1:/x", "out/")
    assert code == 10
    assert "more than 50 files" in rows["web-1"]["error"]
    assert not tree(tmp_path / "out")


def test_a_limit_holds_though_nobody_looked_in_time(fields, hostile, tmp_path, monkeypatch):
    """On a busy machine scp may end soon after the last look, or before the first."""
    monkeypatch.setattr(transfers, "MAX_FILES", 50)
    monkeypatch.setattr(transfers._Limit, "look_again", lambda _self: None)
    hostile("many")
    code, rows = fields("-r", "web-1:/x", "out/")
    assert code == 10
    assert "more than 50 files" in rows["web-1"]["error"]
    assert not tree(tmp_path / "out")


def test_links_of_ours_are_not_followed(fields, tmp_path):
    """A link in the way of a file is replaced, one in the way of a folder too."""
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "log").write_text("new")
    (tmp_path / "source" / "sub" / "x").write_text("new")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "out" / "web-1" / "source").mkdir(parents=True)
    (tmp_path / "out" / "web-1" / "source" / "log").symlink_to(tmp_path / "elsewhere" / "kept")
    (tmp_path / "out" / "web-1" / "source" / "sub").symlink_to(tmp_path / "elsewhere")
    assert fields("-r", f"web-[1]:{tmp_path}/source", "out")[0] == 0
    assert tree(tmp_path / "elsewhere") == {"kept"}
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
    assert (tmp_path / "out" / "web-1" / "source" / "log").read_text() == "new"


def test_what_a_killed_process_left_is_removed(fields, tmp_path):
    (tmp_path / "source").write_text("new")
    left = tmp_path / "out" / ".web-1.copying" / "in" / "closed"
    left.mkdir(parents=True)
    (left / "old").write_text("old")
    left.chmod(0)
    assert fields(f"web-1:{tmp_path}/source", "out/")[0] == 0
    assert tree(tmp_path / "out") == {"source"}


def test_one_process_at_a_time(tmp_path):
    with transfers._draft(tmp_path, "web-1"):  # noqa: SIM117
        with pytest.raises(Conflict, match="another process"), transfers._draft(tmp_path, "web-1"):
            pass
    assert not tree(tmp_path)


def test_an_interrupt_ends_all(guests, hostile, tmp_path):
    """Ctrl-C ends the copies that run, and those that wait never begin."""
    hostile("endless")
    accesses = guests.accesses("web-1", "web-2")
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        transfers.get(
            accesses,
            ["/file"],
            lambda name: (tmp_path / name, None),
            max_size=2**50,
            timeout=60,
            jobs=1,
        )
    assert time.monotonic() - begun < 30
    ps = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in ps.splitlines() if str(tmp_path) in line and "scp" in line]
