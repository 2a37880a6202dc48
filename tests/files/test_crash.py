"""kill -9 at any moment: nothing unlabelled, nothing left over, the same calls complete."""

import random
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from tests.files.endless_work import SCRIBBLE
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_files import drafts

COUNT = 20
ROUNDS = 12

WORKER = Path(__file__).with_name("endless_work.py")


def kill_at_random(folder: Path, images: Path, how: str, *task: str) -> None:
    argv = [sys.executable, WORKER, folder, images, how, str(COUNT), *task]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"go\n"
        time.sleep(random.uniform(0, 0.15))
        assert worker.poll() is None, "the worker failed"
        worker.kill()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def left_over(pool: Path) -> list[str]:
    """Return drafts, and other hidden files than those of every pool."""
    drafts = [path.name for path in (pool / ".tmp").iterdir()]
    hidden = {path.name for path in pool.iterdir() if path.name.startswith(".")}
    return drafts + sorted(hidden - {".id", ".labels", ".lock", ".tmp"})


everywhere = pytest.mark.parametrize(
    ("place", "how"),
    [
        ("here", "unnamed"),
        ("here", "named"),
        pytest.param("xfs", "unnamed", marks=pytest.mark.filesystems),
        pytest.param("ramfs", "named", marks=pytest.mark.filesystems),
        pytest.param("ramfs", "unnamed", marks=pytest.mark.filesystems),
    ],
)


@pytest.fixture
def folder(tmp_path, mounts, new_folder, monkeypatch, place, how):
    if how == "named":

        def refuse(folder: Path):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "unnamed", refuse)
    return tmp_path if place == "here" else new_folder(mounts(place))


@everywhere
def test_kill_9(tmp_path, folder, make_driver, how):
    images = {}
    for seed, name in enumerate("ab"):
        image = make_image(tmp_path / f"{name}.raw", seed=seed)
        images[name] = attrs.evolve(image, digest=f"sha256:{name}")
    pool = folder / "pool"
    interrupted = 0
    for _ in range(ROUNDS):
        kill_at_random(folder, tmp_path, how)
        driver = make_driver(folder)
        if not pool.exists():
            continue  # killed before its first step
        found = driver.volumes()
        assert sorted(volume.path.name for volume in found) == visible(pool / "volumes")
        interrupted += 0 < sum(v.complete for v in found) < COUNT
        assert [f"{o.template}.raw" for o in driver.origins()] == visible(pool / "templates")
        for origin in driver.origins():
            expected = images[origin.digest[-1]].path.read_bytes()
            assert (pool / "templates" / "tiny.raw").read_bytes() == expected

        wanted = [o.digest[-1] for o in driver.origins()] or ["a"]
        image = images[wanted[0]]
        origin = driver.import_image("tiny", image, no_progress).unwrap()
        requests = [
            CloneRequest(labels=make_labels(index=i), origin=origin, mode=CloneMode.LINKED)
            for i in range(1, COUNT + 1)
        ]
        outcomes = list(driver.clone(requests))
        assert all(outcome.ok for outcome in outcomes)
        assert sum(not outcome.changed for outcome in outcomes) == sum(v.complete for v in found)
        assert len(driver.volumes()) == COUNT
        assert left_over(pool) == []
        for volume in driver.volumes():
            check_content(volume, image)
        assert all(outcome.changed for outcome in driver.delete(driver.volumes()))
        assert visible(pool / "volumes") == []
    assert interrupted, "no kill came in the middle of a batch"


@everywhere
def test_kill_9_in_mid_reset(tmp_path, folder, make_driver, how):
    """A disk is the old or the new one, whole."""
    image = make_image(tmp_path / "a.raw", seed=1)
    driver = make_driver(folder)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [
        CloneRequest(labels=make_labels(index=i), origin=origin, mode=CloneMode.LINKED)
        for i in range(1, COUNT + 1)
    ]
    assert all(outcome.ok for outcome in driver.clone(requests))
    fresh = driver.volumes()[0].path.read_bytes()
    for _ in range(ROUNDS // 3):
        kill_at_random(folder, tmp_path, how, "reset")
        driver = make_driver(folder)
        found = driver.volumes()
        assert sorted(v.path.name for v in found) == visible(folder / "pool" / "volumes")
        assert len(found) == COUNT
        for volume in found:
            content = volume.path.read_bytes()
            assert content in (fresh, SCRIBBLE + fresh[len(SCRIBBLE) :])
        assert all(outcome.ok for outcome in driver.reset(requests))
        assert len(driver.volumes()) == COUNT
        assert left_over(folder / "pool") == []
        for volume in driver.volumes():
            check_content(volume, image)


def check_content(volume, image) -> None:
    if volume.format == "raw":
        assert volume.path.read_bytes() == image.path.read_bytes()
        return
    argv = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", volume.path, image.path]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


def test_a_sweep_removes_drafts_of_the_dead_only(tmp_path, make_driver):
    """The reset that made them was killed; the next run need not make anything in the pool."""
    driver = make_driver(tmp_path)
    driver.sweep()
    assert not (tmp_path / "pool").exists()
    image = make_image(tmp_path / "image.raw", seed=1)
    driver.import_image("tiny", image, no_progress).unwrap()
    folder = tmp_path / "pool" / ".tmp"
    (folder / "0123.tmp").write_bytes(b"half")
    (folder / "notes").write_bytes(b"not a draft")
    with drafts.named(folder) as draft:
        make_driver(tmp_path).sweep()
        assert sorted(folder.iterdir()) == sorted([draft.path, folder / "notes"])
    assert len(driver.origins()) == 1
