"""The lock of a volume group, which LVM's own commands take too."""

import fcntl
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError
from vmcloner_lvm import locking


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
