"""A host whose scripts are slow once, and guests' memory, on a real Xen."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.conftest import Site

pytestmark = [pytest.mark.xen, pytest.mark.timeout(900)]
BLOCK = Path("/etc/xen/scripts/block")
SLOW_ONCE = """#!/bin/sh
case $1 in
add) mkdir {mark} 2>/dev/null && sleep 60 ;;
esac
exec {real} "$@"
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """Have libxl's script for disks take longer than its 40 s, the first time; returns the mark."""
    real, mark = BLOCK.with_name("block.real"), tmp_path / "mark"
    BLOCK.rename(real)
    try:
        BLOCK.write_text(SLOW_ONCE.format(mark=mark, real=real))
        BLOCK.chmod(0o755)
        yield mark
    finally:
        real.replace(BLOCK)


@pytest.mark.skipif(not BLOCK.exists(), reason="no Xen")
def test_a_start_whose_script_took_too_long_is_tried_again(
    site: Site, fleet: str, slow: Path
) -> None:
    site.create(fleet, "guest", 1)
    site.run("start", fleet, "--wait", timeout=600)
    assert slow.is_dir()
    assert site.states(fleet) == {f"{fleet}-1": "running"}


def test_memory_that_is_saved_and_restored(site: Site, fleet: str) -> None:
    """The same guest goes on; saved memory that is left of a domain that is gone does not."""
    clone = f"{fleet}-1"
    site.create(fleet, "guest", 1, "--start", "--wait")
    site.run("pause", fleet)
    assert site.states(fleet) == {clone: "paused"}
    site.run("resume", fleet)
    site.run("save", fleet, timeout=300)
    assert site.states(fleet) == {clone: "saved"}
    image = Path(f"/var/lib/libvirt/libxl/save/{clone}.save")
    kept = image.with_name("kept")
    shutil.copy(image, kept)
    try:
        site.run("restore", fleet, timeout=300)
        assert site.states(fleet) == {clone: "running"}
        # Xen begins a new log for the restored domain; a guest that booted would be in it.
        assert "vmcloner-ready" not in site.run("console", clone, "--log")
        site.run("stop", fleet, "--kill", timeout=300)
        site.run("delete", fleet, "--yes", timeout=300)
        shutil.copy(kept, image)
        site.create(fleet, "guest", 1)
        assert not image.exists()
    finally:
        kept.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
