"""``host prepare lvm`` for real, on an empty disk: what it makes, and what it leaves alone."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.lvm.conftest import lvm

DEVICE = os.environ.get("VMCLONER_EMPTY_DEVICE", "")
"""The lab has one; it is empty before and after each test."""
VG = "VG01"
POOL = f"{VG}/thinpool"
PROFILE = Path("/etc/lvm/profile/vmcloner-thin.profile")

pytestmark = [
    pytest.mark.lvm,
    pytest.mark.skipif(not DEVICE, reason="VMCLONER_EMPTY_DEVICE names no device to prepare"),
]


@pytest.fixture
def device():
    """Have an empty disk."""
    signatures = subprocess.run(["wipefs", "--no-act", DEVICE], check=True, capture_output=True)
    assert signatures.stdout == b"", f"{DEVICE} isn't empty"
    assert subprocess.run(["vgs", VG], check=False, capture_output=True).returncode, "not ours"
    kept = PROFILE.exists()
    yield DEVICE
    subprocess.run(["vgremove", "-qff", "-y", VG], check=False, capture_output=True)
    subprocess.run(["wipefs", "--quiet", "--all", DEVICE], check=True)
    if not kept:
        PROFILE.unlink(missing_ok=True)


def prepare(*options):
    argv = ["vmcloner", "host", "prepare", "lvm", "--device", DEVICE, *options, "-f", "value"]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=600)


def test_the_ground_is_made_once(device):
    planned = prepare("--column", "status", "--dry-run")
    assert {*planned.stdout.splitlines()} == {"to do"}
    assert lvm("vgs", "--noheadings", "-o", "vg_name", "-S", f"vg_name={VG}") == []
    made = prepare("--column", "status")
    assert made.returncode == 0, made.stderr
    assert {*made.stdout.splitlines()} == {"done"}
    fields = "segtype,lv_profile,seg_monitor,discards,zero"
    assert lvm("lvs", "--noheadings", "-o", fields, POOL) == [
        "thin-pool", "vmcloner-thin", "monitored", "passdown", "zero",
    ]  # fmt: skip
    uuid = lvm("lvs", "--noheadings", "-o", "lv_uuid", POOL)
    again = prepare("--column", "status")
    assert {*again.stdout.splitlines()} == {"already done"}
    assert lvm("lvs", "--noheadings", "-o", "lv_uuid", POOL) == uuid
    profile = lvm("lvmconfig", "--metadataprofile", "vmcloner-thin", "activation")
    assert "thin_pool_autoextend_threshold=80" in profile


def test_a_disk_that_holds_anything_is_left_alone(device, tmp_path):
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    refused = prepare()
    assert refused.returncode == 5
    assert f"{device} is not empty: ext4" in refused.stderr
    subprocess.run(["mount", device, tmp_path], check=True)
    try:
        refused = prepare()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert f"in use: {tmp_path}" in refused.stderr
