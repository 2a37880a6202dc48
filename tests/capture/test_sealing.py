"""The guest that seals disks: partitions, what fstab mounts, swap; and what can't be sealed."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.capture.test_small import FILES, MIB, make_disk, read
from vmcloner_core.errors import WrongState
from vmcloner_core.model import SealSpec
from vmcloner_core.process import LocalRunner
from vmcloner_core.sealing import seal
from vmcloner_tiny.sealer import Sealer

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]
TABLE = """label: gpt
size=40MiB, uuid=0F0E0D0C-0102-0304-0506-0708090A0B0C
size=40MiB, uuid=1F0E0D0C-0102-0304-0506-0708090A0B0C
size=8MiB
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealer")
    Sealer(SimpleNamespace(runner=LocalRunner())).build(folder, lambda _done, _total: None)
    return folder


def sealed(guest: Path, disk: Path, **rules: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as work:
        rules_of = SealSpec(**rules)
        seal(LocalRunner(), guest, disk, Path(work), "web-1", rules_of, compact=True, emulated=True)


def run(*argv: str | Path, text: str = "") -> None:
    subprocess.run(argv, check=True, input=text, text=True, timeout=60, capture_output=True)


def test_partitions_of_one_system(guest, tmp_path):
    disk, rest = tmp_path / "disk.raw", tmp_path / "var.raw"
    fstab = (
        "UUID=deadbeef-0000-4000-8000-000000000001 / ext4 defaults 0 1\n"
        "PARTUUID=1f0e0d0c-0102-0304-0506-0708090a0b0c /var ext4 defaults 0 2\n"
        "UUID=deadbeef-0000-4000-8000-00000000ffff /srv/gone ext4 nofail 0 2\n"
    )
    root = tmp_path / "root.raw"
    own = {k: v for k, v in FILES.items() if not k.startswith("var/")}
    mine = {"etc/fstab": fstab, "etc/hostname": "web-1\n", "srv/data": "mine"}
    make_disk(root, {**own, **mine}, 40 * MIB)
    make_disk(
        rest,
        {
            "log/app/old.log": "old",
            "log/app\n/srv/data": "two lines",
            "lib/cloud/x": "x",
            "lib/app/data": "data",
        },
        40 * MIB,
    )
    with disk.open("wb") as stream:
        stream.truncate(96 * MIB)
    run("sfdisk", disk, text=TABLE)
    with disk.open("r+b") as stream:
        for start, part in ((1, root), (41, rest)):
            stream.seek(start * MIB)
            stream.write(part.read_bytes())
        swap = tmp_path / "swap.raw"
        swap.write_bytes(bytes(8 * MIB))
        run("mkswap", swap)
        stream.seek(81 * MIB)
        stream.write(swap.read_bytes()[:4096] + b"swapped out" + swap.read_bytes()[4107:])

    sealed(guest, disk)

    content = disk.read_bytes()
    root.write_bytes(content[1 * MIB : 41 * MIB])
    rest.write_bytes(content[41 * MIB : 81 * MIB])
    assert (read(root, "etc/machine-id"), read(root, "etc/hostname")) == ("", "")
    assert (read(root, "etc/fstab"), read(root, "srv/data")) == (fstab, "mine")
    assert (read(rest, "log/app/old.log"), read(rest, "lib/app/data")) == ("", "data")
    assert read(rest, "lib/cloud/x") is None
    assert content[81 * MIB :][4086:4096] == b"SWAPSPACE2"
    assert not any(content[81 * MIB + 4096 : 89 * MIB])


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems(guest, tmp_path, kind):
    """They are sealed; what can be read of that without mounting is that a secret is gone."""
    disk, root = tmp_path / "disk.raw", tmp_path / "root"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with disk.open("wb") as stream:
        stream.truncate(400 * MIB)
    if kind == "btrfs":
        run("mkfs.btrfs", "-q", "-r", root, disk)
        sealed(guest, disk)
        run("btrfs", "check", "--readonly", disk)
    else:
        proto = tmp_path / "proto"
        proto.write_text(
            "/\n0 0\nd--755 0 0\n"
            f"etc d--755 0 0\npasswd ---644 0 0 {root}/etc/passwd\n"
            f"machine-id ---644 0 0 {root}/etc/machine-id\n$\n$\n"
        )
        run("mkfs.xfs", "-q", "-p", proto, disk)
        assert FILES["etc/machine-id"].encode() in disk.read_bytes()
        sealed(guest, disk)
        run("xfs_repair", "-n", disk)


def refusals(guest: Path, disks: Iterable[Path]) -> list[str]:
    """Return why disks can't be sealed; two guests run at once."""

    def refusal(disk: Path) -> str:
        with pytest.raises(WrongState) as caught:
            sealed(guest, disk)
        return str(caught.value)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(refusal, disks))


def test_what_cannot_be_sealed(guest, tmp_path):
    lacking, empty, damaged = (tmp_path / f"disk-{n}.raw" for n in range(3))
    make_disk(lacking, {**FILES, "etc/fstab": "UUID=1234 /srv ext4 defaults 0 2\n"})
    for disk in (empty, damaged):
        make_disk(disk, {"data": "no system"})
    with damaged.open("r+b") as stream:  # the superblock stays: it is a damaged ext4
        stream.seek(4096)
        stream.write(b"\xff" * 8192)
    first, second, third = refusals(guest, [lacking, empty, damaged])
    assert "/srv (UUID=1234 in its /etc/fstab) is not on this" in first
    assert "no operating system was found" in second
    assert "can't be" in third


def test_a_disk_that_would_seal_itself(guest, tmp_path):
    """What is on the disk takes no part in its sealing, wherever its links and fstab lead."""
    uuid = "deadbeef-0000-4000-8000-000000000001"
    # Where the guest's list of rules and its programs are, a disk has its own.
    tricks = {
        "over": ({"etc/fstab": f"UUID={uuid} /dev ext4 defaults 0 0\n", "seal/list": ""}, {}),
        "over a link": (
            {"etc/fstab": f"UUID={uuid} /place ext4 defaults 0 0\n", "seal/list": ""},
            {"place": "dev"},
        ),
        "a link": ({"mnt/x/seal/busybox": "#!/bin/sh\n", "x/y": ""}, {"dev": "/mnt/x"}),
        "removed": ({}, {"tmp": "/dev/seal"}),
    }
    disks = {name: tmp_path / f"{name}.raw" for name in tricks}
    for name, (files, links) in tricks.items():
        make_disk(disks[name], {**FILES, **files}, links=links)
        run("tune2fs", "-U", uuid, disks[name])
    for said in refusals(guest, disks.values()):
        assert re.search(r"can't be sealed: .*(/dev|can't be removed)", said)
