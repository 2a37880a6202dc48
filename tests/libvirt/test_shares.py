"""The memory that QEMU's processes take, in what /proc says of them."""

from pathlib import Path

import pytest

pytest.importorskip("libvirt")

from vmcloner_libvirt import statistics
from vmcloner_libvirt.statistics import QemuStatistics

ROLLUP = """55d0-7ffd ---p 00000000 00:00 0                                      [rollup]
Rss:              102400 kB
Pss:               20480 kB
Pss_Dirty:           512 kB
"""


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Have processes, and files with their ids: of one that runs, and of some that don't."""
    monkeypatch.setattr(statistics, "PROC", tmp_path / "proc")

    def process(pid, guest, rollup=ROLLUP):
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cmdline").write_bytes(f"qemu\0-name\0guest={guest},debug-threads=on\0".encode())
        (folder / "smaps_rollup").write_text(rollup)

    process(11, "web-1")
    process(12, "other-1")
    process(13, "web-4", "")  # it has just ended
    for name, text in {"web-1": "11\n", "web-2": "12\n", "web-3": "99\n", "web-5": "../11"}.items():
        (tmp_path / f"{name}.pid").write_text(text)
    (tmp_path / "web-4.pid").write_text("13")
    return tmp_path


def test_the_share_of_a_process(proc: Path):
    """What isn't known is left out: an old file may name another process."""
    files = lambda name: (proc / "nowhere" / f"{name}.pid", proc / f"{name}.pid")  # noqa: E731
    read = QemuStatistics(None, dict, files)
    names = [f"web-{n}" for n in range(1, 7)]
    assert read.shares(names) == {"web-1": 20480 * 1024}
