"""The memory that guests can have: what can be reclaimed, less what was promised."""

import pytest

from vmcloner_libvirt import host_memory

MIB = 1024**2
MEMINFO = """MemTotal:       24684528 kB
MemFree:        12000000 kB
MemAvailable:   20286464 kB
Buffers:          500000 kB
Cached:         10291712 kB
Shmem:           2506240 kB
CommitLimit:    12342264 kB
Committed_AS:    2342264 kB
Hugepagesize:       2048 kB
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys/vm/overcommit_memory").write_text("0\n")
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(host_memory, "PROC", tmp_path)
    return tmp_path


def guest(host, pid, *words, resident, huge=0, comm="qemu-system-x86"):
    folder = host / str(pid)
    folder.mkdir()
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in (comm, *words)) + b"\0")
    status = f"Name:\t{comm}\nVmRSS:\t{resident // 1024} kB\nHugetlbPages:\t{huge // 1024} kB\n"
    (folder / "status").write_text(status)


def test_shared_memory_is_not_free(host):
    assert host_memory.available(0) == 20286464 * 1024  # free, buffers and caches are 2.5 GiB more


def test_a_kernel_that_does_not_overcommit(host):
    (host / "sys/vm/overcommit_memory").write_text("2\n")
    assert host_memory.available(0) == 10_000_000 * 1024


@pytest.mark.parametrize(
    "size", ["size=1048576k", "1024", "1G", "size=1024M,slots=2,maxmem=4G", "1024M"]
)
def test_what_guests_have_not_touched_yet_is_promised(host, size):
    guest(host, 7, "-name", "guest=web-1", "-m", size, resident=100 * MIB)
    assert host_memory.promised(0) == 924 * MIB
    assert host_memory.available(50 * MIB) == 20286464 * 1024 - 974 * MIB
    guest(host, 8, "-m", "64", resident=100 * MIB)  # has more than its own
    guest(host, 9, "-m", "1024", resident=10 * MIB, huge=1024 * MIB)
    guest(host, 10, "-m", "1024", resident=MIB, comm="qemu-img")
    assert host_memory.promised(0) == 924 * MIB


def test_what_can_not_be_read_is_left_out(host):
    (host / "11").mkdir()
    guest(host, 12, "-m", resident=0)
    assert host_memory.promised(0) == 0
    (host / "meminfo").unlink()
    assert host_memory.available(0) is None


def test_huge_pages(host, tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "HUGE_PAGES", tmp_path / "pages")
    for size, free, reserved in ((1048576, 3, 1), (2048, 10, 0)):
        folder = tmp_path / f"pages/hugepages-{size}kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{free}\n")
        (folder / "resv_hugepages").write_text(f"{reserved}\n")
    found = host_memory.pages()
    assert found == {2 * MIB: 20 * MIB, 1024 * MIB: 2048 * MIB}
    assert next(iter(found)) == 2 * MIB, "the default size is the first"
