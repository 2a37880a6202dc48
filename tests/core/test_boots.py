"""Boot providers that are asked at each start, and the files that clones are started from."""

import stat
from pathlib import Path

import attrs
import pytest

from vmcloner_core import Engine, State
from vmcloner_core.bootfiles import clear, fresh
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, PartialFailure
from vmcloner_core.testing.reference import (
    BootPlugin,
    HypervisorPlugin,
    ReferenceHypervisor,
    StoragePlugin,
)

TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
[image]
path = "image.raw"
"""


@attrs.frozen
class Site:
    engine: Engine
    folder: Path
    boot: BootPlugin
    hypervisor: HypervisorPlugin

    @property
    def machines(self) -> ReferenceHypervisor:
        return self.hypervisor.driver

    @property
    def files(self) -> dict[str, str]:
        root = self.folder / "state/boot"
        return {str(f.relative_to(root)): f.read_text() for f in root.rglob("*") if f.is_file()}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    (tmp_path / "vmcloner.toml").write_text(
        '[defaults]\nhypervisor = "reference"\nstorage = "reference"\n'
        f'[hosts.local]\nstate = "{tmp_path}/state"\n'
    )
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/t.toml").write_text(TEMPLATE)
    (tmp_path / "templates/image.raw").write_bytes(bytes(1024**2))
    boot, machines = BootPlugin(at_start=True), HypervisorPlugin()
    with Engine.open(plugins=[StoragePlugin(), machines, boot]) as engine:
        engine.list()  # makes the drivers
        yield Site(engine, tmp_path, boot, machines)


def test_each_start_asks_again(site):
    site.engine.create("web", "t", count=2, start=True)
    assert site.files == {"web-1/kernel": "start 1", "web-2/kernel": "start 1"}
    assert site.machines.boots["web-1"].kernel == site.folder / "state/boot/web-1/kernel"
    site.engine.stop("web-1")
    assert site.files == {"web-2/kernel": "start 1"}
    site.engine.start("web")
    assert site.files == {"web-1/kernel": "start 2", "web-2/kernel": "start 1"}
    site.engine.restart("web-2")
    assert site.files == {"web-1/kernel": "start 2", "web-2/kernel": "start 2"}
    site.engine.delete("web")
    assert not list((site.folder / "state/boot").iterdir())


def test_a_request_has_all_that_a_provider_may_need(site):
    site.engine.create("web", "t", count=1)
    site.engine.start("web")
    clone = site.engine.show("web-1")
    (asked,) = site.boot.driver.asked
    assert asked.labels == clone.labels
    assert asked.labels.boot == "reference"
    assert asked.hypervisor == "reference"
    assert asked.template == site.engine.template("t")
    assert asked.uuid == clone.domain.uuid
    assert tuple(nic.mac for nic in asked.nics) == clone.domain.macs
    assert asked.volumes == clone.volumes
    assert asked.folder == site.folder / "state/boot/web-1"
    assert not asked.dry_run


def test_create_starts_what_was_left_stopped(site):
    site.engine.create("web", "t", count=2)
    assert site.engine.create("web", "t", count=2, start=True).ok
    assert sorted(site.files) == ["web-1/kernel", "web-2/kernel"]


def test_a_paused_clone_is_resumed_from_what_it_booted(site):
    site.engine.create("web", "t", count=1, start=True)
    machines = site.machines.machines
    machines["web-1"] = attrs.evolve(machines["web-1"], state=State.PAUSED)
    site.engine.start("web")
    assert len(site.boot.driver.asked) == 1
    assert site.files == {"web-1/kernel": "start 1"}


def test_one_that_boots_nothing_keeps_no_other_from_starting(site):
    site.engine.create("web", "t", count=3)
    site.boot.driver.fail["web-2"] = InvalidRequest("web-2: no kernel on its disk")
    with pytest.raises(PartialFailure) as caught:
        site.engine.start("web")
    assert [(name, error.message) for name, error in caught.value.failures] == [
        ("web-2", "web-2: no kernel on its disk")
    ]
    assert site.machines.states()["web-1"] is State.RUNNING
    assert site.machines.states()["web-2"] is State.STOPPED
    assert sorted(site.files) == ["web-1/kernel", "web-3/kernel"]


def test_a_start_that_fails_leaves_no_files(site):
    site.engine.create("web", "t", count=1)
    site.machines.fail["start", "web-1"] = BackendError("web-1: no")
    with pytest.raises(PartialFailure):
        site.engine.start("web")
    assert site.files == {}


@pytest.mark.parametrize("action", ["start", "restart"])
def test_a_template_that_is_gone(site, action):
    """Nothing is stopped that can't be started again."""
    site.engine.create("web", "t", count=1)
    if action == "restart":
        site.engine.start("web")
    (site.folder / "templates/t.toml").unlink()
    with pytest.raises(NotFound, match=r"template 't', which is gone.*vmcloner delete web-1"):
        getattr(site.engine, action)("web")
    assert site.machines.states()["web-1"] is (
        State.RUNNING if action == "restart" else State.STOPPED
    )
    site.engine.stop("web")
    site.engine.delete("web")


def test_clones_of_other_providers_need_no_template(lab):
    lab.engine.create("web", "t1", count=1)
    (lab.folder / "templates/t1.toml").unlink()
    assert lab.engine.start("web").ok
    assert lab.engine.show("web-1").labels.boot is None
    assert lab.machines.boots == {"web-1": None}


def test_a_hypervisor_that_cannot_boot_once(site, monkeypatch):
    monkeypatch.setattr(ReferenceHypervisor, "one_shot", False)
    with pytest.raises(InvalidRequest, match="boots only what a definition says"):
        site.engine.create("web", "t", count=1)


# --- files ------------------------------------------------------------------------------------


def test_fresh_is_empty_and_private(tmp_path):
    own = fresh(tmp_path / "boot", "web-1")
    (own / "sub").mkdir()
    (own / "sub/file").write_text("old")
    assert list(fresh(tmp_path / "boot", "web-1").iterdir()) == []
    assert stat.S_IMODE(own.stat().st_mode) == 0o711
    assert stat.S_IMODE((tmp_path / "boot").stat().st_mode) == 0o711


def test_clear_is_idempotent(tmp_path):
    own = fresh(tmp_path, "web-1")
    (own / "kernel").write_text("x")
    clear(tmp_path, "web-1")
    clear(tmp_path, "web-1")
    assert not own.exists()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b-1", "web", "/etc-1"])
def test_only_a_clones_name_becomes_a_path(tmp_path, name):
    for operation in (fresh, clear):
        with pytest.raises(InvalidRequest):
            operation(tmp_path, name)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "boot").write_text("a file")
    with pytest.raises(BackendError, match="can't make the folder"):
        fresh(tmp_path / "boot", "web-1")


def test_a_link_in_the_folders_place_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("stays")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/web-1").symlink_to(elsewhere)
    with pytest.raises(BackendError):
        clear(tmp_path / "boot", "web-1")
    assert (elsewhere / "file").exists()
