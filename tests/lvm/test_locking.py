"""The lock of a volume group, which LVM's own commands take too."""

import fcntl
import os
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.locks import hold
from vmcloner_lvm import commands, locking


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def fail(_fd, _how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", fail)
    before = descriptors()
    with pytest.raises(BackendError, match=r"can't lock .*V_vg: No locks available") as caught:
        locking.group_lock(tmp_path, "vg").__enter__()
    assert "locking_dir" in caught.value.hint
    assert descriptors() == before


def test_a_lock_is_held_until_the_end(tmp_path):
    with (tmp_path / "V_vg").open("w") as stream:
        with locking.group_lock(tmp_path, "vg"), pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_folder_for_locks_is_refused(tmp_path, monkeypatch):
    """/run/lock is open to all: who makes the folder first could stop imports, or plant links."""
    folder, elsewhere = tmp_path / "vmcloner" / "lvm", tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    (folder / "V_vg").symlink_to(elsewhere)
    monkeypatch.setattr(commands, "OWN_LOCKS", folder)
    os.chown(folder.parent, 12345, -1)

    class Runner:
        def which(self, program):
            return program

        def run(self, argv, **_options):
            raise AssertionError(argv)

    with pytest.raises(InvalidRequest, match="belongs to user 12345"):
        commands.Lvm("vg", Runner()).run("lvremove", "vg/x", held=True)
    with pytest.raises(InvalidRequest, match="belongs to user 12345"), hold(folder.parent, ["x"]):
        pass
    with pytest.raises(BackendError, match="V_vg"), locking.group_lock(folder, "vg"):
        pass
    assert not elsewhere.exists()
