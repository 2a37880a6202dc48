"""Copies in a volume group, on a faked host: what is done where something is amiss."""

import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from tests.dd.fakes import EXTENT, FakeGroup, Volume, open_driver
from vmcloner_core.copying import Target
from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import BackendError, Conflict, HostCommandError, NotEnoughResources
from vmcloner_core.model import CloneRequest, Copying, Host
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress

MIB = 1024**2


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "dev"
    folder.mkdir()
    return FakeGroup(folder)


@pytest.fixture
def driver(host, tmp_path):
    context = DriverContext(host=Host(name="local", state=tmp_path), name="pool", runner=host)
    return open_driver(context)


@pytest.fixture
def origin(driver, tmp_path):
    image = make_image(tmp_path / "image.raw", seed=1, size=8 * MIB)
    return driver.import_image("tiny", image, no_progress).unwrap()


def requests(origin, count, **options):
    return [
        CloneRequest(labels=make_labels(index=index), origin=origin, copying=Copying(**options))
        for index in range(1, count + 1)
    ]


def cut_off(driver, origin, monkeypatch):
    """Begin a copy, and end in its middle."""

    def dies(target, data, at):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", dies)
        with pytest.raises(Killed):
            list(driver.clone(requests(origin, 1)))


def test_a_copy_is_its_template_and_zeros(driver, origin, tmp_path):
    wanted = [attrs.evolve(each, size=12 * MIB) for each in requests(origin, 2, verify=True)]
    content = (tmp_path / "image.raw").read_bytes()
    for volume in [outcome.unwrap() for outcome in driver.clone(wanted)]:
        assert volume.path.read_bytes() == content.ljust(12 * MIB, b"\0")
    assert all(volume.complete for volume in driver.volumes())


def test_a_cut_off_copy_becomes_as_large_as_its_new_image(
    host, driver, origin, tmp_path, monkeypatch
):
    cut_off(driver, origin, monkeypatch)
    assert [(v.complete, v.size) for v in driver.volumes()] == [(False, 8 * MIB)]
    larger = make_image(tmp_path / "larger.raw", seed=2, size=14 * MIB)
    origin = driver.import_image("tiny", larger, no_progress).unwrap()
    [volume] = [outcome.unwrap() for outcome in driver.clone(requests(origin, 1, verify=True))]
    assert (volume.complete, volume.size) == (True, 16 * MIB)
    assert volume.path.read_bytes() == larger.path.read_bytes().ljust(16 * MIB, b"\0")
    assert sum(call.startswith("lvextend") for call in host.calls) == 1


@pytest.mark.parametrize("segtype", ["linear", "thin"])
def test_what_others_hung_on_a_volume_stays_and_so_does_it(host, driver, origin, tmp_path, segtype):
    volumes = [outcome.unwrap() for outcome in driver.clone(requests(origin, 2))]
    for number, on in enumerate(["web-1-disk0", "image.tiny"]):
        host.volumes[f"precious{number}"] = Volume(f"p{number}", EXTENT, [], segtype, on)
    outcomes = {outcome.key: outcome.error for outcome in driver.delete(volumes)}
    assert isinstance(outcomes["web-1-disk0"], Conflict)
    assert "be removed with it: vg/precious0" in str(outcomes["web-1-disk0"])
    assert outcomes["web-2-disk0"] is None
    with pytest.raises(Conflict, match="be removed with it: vg/precious1"):
        driver.delete_origin("tiny")
    host.calls.clear()
    other = make_image(tmp_path / "other.raw", seed=2, size=8 * MIB)
    with pytest.raises(Conflict, match="be removed with it: vg/precious1"):
        driver.import_image("tiny", other, no_progress)
    assert not any(call.startswith("lvcreate") for call in host.calls)
    assert host.volumes.keys() == {"web-1-disk0", "image.tiny", "precious0", "precious1"}


def test_imports_by_two_state_folders_wait_for_one_another(host, driver, tmp_path, monkeypatch):
    image = make_image(tmp_path / "image.raw", seed=1, size=8 * MIB)
    context = DriverContext(
        host=Host(name="local", state=tmp_path / "other"), name="pool", runner=host
    )
    second = open_driver(context)
    write, others = Target.write, []

    def import_too(target, data, at):
        if not others:
            others.append(pool.submit(second.import_image, "tiny", image, no_progress))
            time.sleep(0.5)
            assert not others[0].done()
        write(target, data, at)

    monkeypatch.setattr(Target, "write", import_too)
    with ThreadPoolExecutor(1) as pool:
        assert driver.import_image("tiny", image, no_progress).changed
        assert not others[0].result(30).changed
    assert host.volumes.keys() == {"image.tiny"}


def test_a_volume_that_cant_be_activated_fails_alone(host, driver, origin):
    host.refuse = {"-ay web-2-disk0": HostCommandError("lvchange failed with 5")}
    outcomes = {outcome.key: outcome.error for outcome in driver.clone(requests(origin, 3))}
    assert isinstance(outcomes["web-2-disk0"], HostCommandError)
    assert [key for key, error in outcomes.items() if error is None] == [
        "web-1-disk0", "web-3-disk0",
    ]  # fmt: skip
    assert [(v.name, v.complete) for v in driver.volumes()] == [
        ("web-1-disk0", True), ("web-3-disk0", True),
    ]  # fmt: skip
    assert host.active == set()


def test_a_copy_that_cant_be_marked_is_gone_on_with(host, driver, origin, monkeypatch):
    """LVM marks them one by one, and may end in between."""
    error = HostCommandError("lvchange failed with 5")
    lvchange = host._lvchange

    def ends(words):
        lvchange(words[:3])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(host, "_lvchange", ends)
        outcomes = {o.key: str(o.error) for o in driver.clone(requests(origin, 3))}
    assert outcomes == {"web-1-disk0": "None", "web-2-disk0": str(error), "web-3-disk0": str(error)}
    assert [volume.complete for volume in driver.volumes()] == [True, False, False]
    assert host.active == set()
    assert all(outcome.ok for outcome in driver.clone(requests(origin, 3)))
    assert [volume.complete for volume in driver.volumes()] == [True, True, True]


def test_a_host_without_lvm(host, driver):
    host.missing = {"lvs", "vgs"}
    for asked in (driver.volumes, driver.capacity, lambda: driver.delete_origin("tiny")):
        with pytest.raises(BackendError, match=r"lvm2 is not installed \(apt-get install lvm2\)"):
            asked()


@pytest.mark.parametrize("empty", [False, True])
def test_another_group_of_the_same_name_is_refused(host, driver, origin, tmp_path, empty):
    """The disks of the one that has the clones are not connected, say."""
    [volume] = [outcome.unwrap() for outcome in driver.clone(requests(origin, 1))]
    host.uuid = "second"
    if empty:
        host.volumes.clear()
    context = DriverContext(host=Host(name="local", state=tmp_path), name="pool", runner=host)
    again = open_driver(context)
    for ask in (
        again.volumes,
        lambda: list(again.delete([volume])),
        lambda: list(again.clone(requests(origin, 2))),
    ):
        with pytest.raises(BackendError, match="is not the one that storage 'pool' was before"):
            ask()
    host.uuid = "first"
    assert [each.name for each in again.volumes()] == ([] if empty else [volume.name])


# --- disks that grow ------------------------------------------------------------------------------


def grow(driver, size):
    return {outcome.key: outcome for outcome in driver.grow(driver.volumes(), size)}


@pytest.mark.parametrize("again", ["grow", "clone"])
@pytest.mark.parametrize("at", ["lvextend", "activate", "lvchange --deltag"])
def test_a_disk_that_was_being_enlarged_is_gone_on_with(host, driver, origin, at, again):
    """Until all of it is written, it may show the bytes of deleted volumes: no guest gets it."""
    assert all(outcome.ok for outcome in driver.clone(requests(origin, 1)))
    content = host.path("web-1-disk0").read_bytes()
    run, on = host._run, host.on

    def until(real, what):
        def call(words):
            if " ".join([*what, *words]).startswith(at):
                raise Killed
            return real(words)

        return call

    host._run, driver._group.activate = until(run, []), until(on, ["activate"])
    with pytest.raises(Killed):
        grow(driver, 12 * MIB)
    host._run, driver._group.activate = run, on
    [left] = driver.volumes()
    assert not left.complete
    assert [outcome.ok for outcome in driver.activate([left])] == [False]
    if again == "grow":
        assert grow(driver, 12 * MIB)["web-1-disk0"].changed
    else:
        assert all(outcome.ok for outcome in driver.clone(requests(origin, 1)))
    [volume] = driver.volumes()
    assert volume.complete
    grown = host.path("web-1-disk0").read_bytes()
    assert grown[: len(content)] == content
    assert not any(grown[len(content) :])
    assert again == "clone" or volume.size == 12 * MIB


def test_a_disk_without_room_keeps_its_size(host, driver, origin):
    assert all(outcome.ok for outcome in driver.clone(requests(origin, 2)))
    host.free = 4 * MIB
    outcomes = grow(driver, 12 * MIB)
    assert [o.ok for o in outcomes.values()] == [True, False]
    assert isinstance(outcomes["web-2-disk0"].error, NotEnoughResources)
    assert [(v.size // MIB, v.complete) for v in driver.volumes()] == [(12, True), (8, True)]


def test_a_disk_whose_copy_was_cut_off_does_not_grow(host, driver, origin, monkeypatch):
    cut_off(driver, origin, monkeypatch)
    assert "incomplete" in str(grow(driver, 12 * MIB)["web-1-disk0"].error)
    assert host.volumes["web-1-disk0"].size == 8 * MIB


# --- batches --------------------------------------------------------------------------------------


def test_a_fleet_is_reset_by_few_commands(host, driver, origin):
    """One clone after the other, each with commands of its own, took minutes on a busy host."""
    assert driver.reset_lane.batch >= driver.clone_lane.batch
    wanted = requests(origin, 8)
    assert all(outcome.ok for outcome in driver.clone(wanted))
    host.calls.clear()
    assert all(outcome.ok for outcome in driver.reset(wanted))
    names = [call.split()[0] for call in host.calls]
    assert names.count("lvremove") == 1
    assert names.count("activate") <= 2  # the volumes, and their image
    assert names.count("lvs") < 8
