"""A pool that isn't the one that was used before is refused: it is not mounted, or another one."""

import shutil

import pytest

from vmcloner_core.errors import BackendError
from vmcloner_core.model import CloneRequest, Status
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress


@pytest.fixture
def volume(tmp_path, make_driver):
    driver = make_driver(tmp_path)
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    return next(driver.clone([CloneRequest(labels=make_labels(), origin=origin)])).unwrap()


def not_mounted(pool):
    pool.mkdir()


def not_there(pool):
    pass


def another_pool(pool):
    (pool / "volumes").mkdir(parents=True)
    (pool / ".id").write_text("0" * 32)


def damaged(pool):
    shutil.copytree(pool.with_name("real"), pool)
    (pool / ".id").write_bytes(b"\xff" * 1000)


@pytest.mark.parametrize("change", [not_mounted, not_there, another_pool, damaged])
def test_what_is_there_instead_is_refused(tmp_path, make_driver, volume, change):
    pool = tmp_path / "pool"
    [origin] = make_driver(tmp_path).origins()
    pool.rename(tmp_path / "real")
    change(pool)
    before = sorted(pool.rglob("*"))
    image = make_image(tmp_path / "other.raw", seed=2)
    request = CloneRequest(labels=make_labels(index=2), origin=origin)
    for ask in (
        lambda driver: driver.volumes(),
        lambda driver: driver.origins(),
        lambda driver: list(driver.clone([request])),
        lambda driver: list(driver.reset([request])),
        lambda driver: list(driver.delete([volume])),
        lambda driver: driver.unlabelled(["web-1-disk0"]),
        lambda driver: driver.delete_origin("tiny"),
        lambda driver: driver.import_image("other", image, no_progress).unwrap(),
    ):
        with pytest.raises(
            BackendError, match="is not the one that storage 'pool' was before"
        ) as e:
            ask(make_driver(tmp_path))
        assert "\n" not in str(e.value)
        assert f"rm {tmp_path}/state/pools/pool" in e.value.hint
    [check] = [c for c in make_driver(tmp_path).probe() if c.name == "identity"]
    assert check.status is Status.FAILED
    assert f"rm {tmp_path}/state/pools/pool" in check.fix
    assert sorted(pool.rglob("*")) == before

    shutil.rmtree(pool, ignore_errors=True)
    (tmp_path / "real").rename(pool)
    assert make_driver(tmp_path).volumes() == (volume,)


def test_it_vanishes_under_a_driver_that_used_it(tmp_path, make_driver, volume):
    driver = make_driver(tmp_path)
    [origin] = driver.origins()
    request = CloneRequest(labels=make_labels(index=2), origin=origin)
    assert next(driver.clone([request])).ok
    (tmp_path / "pool").rename(tmp_path / "real")
    (tmp_path / "pool" / "volumes").mkdir(parents=True)
    for ask in (driver.volumes, lambda: list(driver.delete([volume]))):
        with pytest.raises(BackendError, match="it has no id"):
            ask()
    with pytest.raises(BackendError, match="it has no id"):
        list(driver.clone([CloneRequest(labels=make_labels(index=3), origin=origin)]))
    assert list((tmp_path / "pool").iterdir()) == [tmp_path / "pool" / "volumes"]


def test_another_pool_is_taken_when_what_was_remembered_is_removed(tmp_path, make_driver, volume):
    (tmp_path / "pool").rename(tmp_path / "real")
    (tmp_path / "state" / "pools" / "pool").unlink()
    driver = make_driver(tmp_path)
    assert driver.volumes() == ()
    driver.import_image("tiny", make_image(tmp_path / "image.raw", seed=1), no_progress).unwrap()
    (tmp_path / "pool").rename(tmp_path / "new")
    (tmp_path / "real").rename(tmp_path / "pool")
    with pytest.raises(BackendError, match="it has another id"):
        make_driver(tmp_path).volumes()


def test_a_pool_of_an_earlier_version_gets_its_id_at_the_next_run(tmp_path, make_driver, volume):
    for path in (tmp_path / "pool" / ".id", tmp_path / "state" / "pools" / "pool"):
        path.unlink()
    driver = make_driver(tmp_path)
    assert driver.volumes() == (volume,)
    driver.sweep()
    found = (tmp_path / "pool" / ".id").read_text()
    assert (tmp_path / "state" / "pools" / "pool").read_text().strip() == found.strip()


def test_a_pool_that_was_moved_with_its_id_is_the_same(tmp_path, make_driver, volume):
    """Its labels come with its files' attributes, or are lost; nothing is taken for deleted."""
    shutil.copytree(tmp_path / "pool", tmp_path / "copy")  # with attributes
    shutil.rmtree(tmp_path / "pool")
    (tmp_path / "copy").rename(tmp_path / "pool")
    for folder in ("pool", "pool/volumes", "pool/templates", "pool/.tmp"):
        (tmp_path / folder).chmod(0o711)
    driver = make_driver(tmp_path)
    assert driver.volumes() == (volume,)
    driver.sweep()
    assert make_driver(tmp_path).volumes() == (volume,)


def test_a_pool_that_was_copied_without_attributes_names_what_lost_its_labels(
    tmp_path, make_driver, volume
):
    content = volume.path.read_bytes()
    volume.path.unlink()
    volume.path.write_bytes(content)
    driver = make_driver(tmp_path)
    assert driver.volumes() == ()
    assert driver.unlabelled([volume.name, "web-2-disk0"]) == [volume.name]
