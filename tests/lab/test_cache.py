"""What is built is built once, whole, and not kept for ever."""

import os
import subprocess
import sys
import time

import pytest

from contrib.lab import cache
from contrib.lab.errors import LabError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "lab"))
    return tmp_path / "lab"


def fill(path):
    (path / "file").write_text("content")


def test_is_the_users_alone(folder):
    assert cache.folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_builds_once():
    built = cache.entry("thing", "1", fill)
    assert (built / "file").read_text() == "content"
    assert cache.entry("thing", "1", lambda _: pytest.fail("built again")) == built


def test_a_failure_leaves_nothing(folder):
    def fail(path):
        fill(path)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.entry("thing", "1", fail)
    assert [path.name for path in folder.iterdir()] == ["thing.lock"]


def test_the_next_build_clears_away_a_killed_one(folder):
    killed = (
        "import os; from contrib.lab import cache\n"
        "cache.entry('thing', '1', lambda path: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", killed], check=False, env=environment())
    assert done.returncode == -9
    assert len(list(folder.glob("thing.building-*"))) == 1
    cache.entry("thing", "1", fill)
    assert {path.name for path in folder.iterdir()} == {"thing.lock", "thing-1"}


def test_two_that_want_the_same_build_it_once(tmp_path):
    builder = (
        "import time; from pathlib import Path; from contrib.lab import cache\n"
        "def build(path):\n"
        "    time.sleep(0.3)\n"
        f"    with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('built ')\n"
        "cache.entry('thing', '1', build)"
    )
    both = [subprocess.Popen([sys.executable, "-c", builder], env=environment()) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "built "


def test_what_nobody_used_for_long_goes_with_the_next_build():
    old, used = cache.entry("thing", "old", fill), cache.entry("thing", "used", fill)
    for path in (old, used):
        os.utime(path, (0, time.time() - cache.UNUSED - 60))
    cache.entry("thing", "used", fill)
    cache.entry("thing", "new", fill)
    assert (old.exists(), used.exists()) == (False, True)


def test_the_key_changes_with_name_content_and_mode(tmp_path):
    path = tmp_path / "script"
    path.write_text("a")
    keys = [cache.digest_files([path], tmp_path)]
    path.write_text("b")
    keys.append(cache.digest_files([path], tmp_path))
    path.chmod(0o755)
    keys.append(cache.digest_files([path], tmp_path))
    keys.append(cache.digest_files([path.rename(tmp_path / "other")], tmp_path))
    assert len(set(keys)) == 4
    assert cache.digest("ab", "c") != cache.digest("a", "bc")


def test_a_lock_can_be_asked_for(tmp_path):
    with cache.locked(tmp_path / "lock") as held:
        assert held is not None
        with cache.locked(tmp_path / "lock", wait=False) as second:
            assert second is None
    with cache.locked(tmp_path / "lock", wait=False) as free:
        assert free is not None


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_could_have_written_is_refused(folder, mode):
    """Root runs what is in it."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(LabError, match="others can write to"):
        cache.folder()
