"""Boot providers that are asked at each start, and the files that clones are started from."""

import json
import stat
from pathlib import Path

import attrs
import pytest

from tests.conftest import forget_templates
from vmcloner_core import Engine, Readiness, State, readiness, watching
from vmcloner_core.bootfiles import clear, fresh
from vmcloner_core.booting import told
from vmcloner_core.cli import app
from vmcloner_core.drivers import NO_BOOTS
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, PartialFailure
from vmcloner_core.model import BootConfig, Identity, Outcome, Seed
from vmcloner_core.testing.reference import (
    BootPlugin,
    HypervisorPlugin,
    ReferenceBoot,
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
        return {str(f.relative_to(root)): f.read_text() for f in root.rglob("*/kernel")}


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
    plugins = [StoragePlugin(), machines, boot, BootPlugin("second")]
    with Engine.open(plugins=plugins) as engine:
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
    forget_templates(site.folder / "state")
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
    with pytest.raises(InvalidRequest, match="boots only by the definition"):
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
    with pytest.raises(BackendError, match="cannot create the folder"):
        fresh(tmp_path / "boot", "web-1")


@pytest.mark.parametrize("text", ["", "[", "[" * 99_999, "null", '{"kernel": 1}'])
def test_a_damaged_note_of_what_a_clone_was_started_from_is_none(lab, text):
    lab.engine.create("web", "t1", count=1, start=True)
    file = lab.engine.host.boots / "web-1" / "boot.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert not lab.engine._host.starter.ended_to_boot_anew("web-1")
    assert lab.engine.boots("web")[0].error is None


def test_a_link_in_the_folders_place_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("stays")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/web-1").symlink_to(elsewhere)
    with pytest.raises(BackendError):
        clear(tmp_path / "boot", "web-1")
    assert (elsewhere / "file").exists()


# --- guests that reboot -----------------------------------------------------------------------


@pytest.fixture
def installer(site):
    """An installer boots first, and reboots: its domain ends. Later starts boot the disk."""
    site.boot.driver.on_reboot = "destroy"
    machines = site.machines
    start = machines.start

    def started(names, boots=NO_BOOTS):
        yield from start(names, boots)
        for name in names:
            machines.said[name] = b"installing\n"
            if machines.boots[name].on_reboot == "destroy":
                machines.machines[name] = attrs.evolve(machines.machines[name], state=State.STOPPED)
                site.boot.driver.on_reboot = "restart"
            else:
                machines.said[name] = f"{name} login: ".encode()

    machines.start = started
    return site


def test_wait_starts_a_clone_again_whose_installer_rebooted(installer):
    login = Readiness.parse("console:{{ name }} login:")
    assert installer.engine.create("web", "t", count=1, wait=login).ok
    assert installer.files["web-1/kernel"] == "start 2"
    assert installer.machines.states()["web-1"] is State.RUNNING


def test_a_wait_that_begins_later_does_so_too(installer):
    installer.engine.create("web", "t", count=1, start=True)
    assert installer.machines.states()["web-1"] is State.STOPPED
    assert installer.engine.wait("web", wait=Readiness.parse("console:login:")).ok


def test_wait_leaves_a_clone_stopped_that_was_stopped(installer):
    installer.engine.create("web", "t", count=1, start=True)
    installer.machines.machines["web-1"] = attrs.evolve(
        installer.machines.machines["web-1"], state=State.RUNNING
    )
    installer.engine.stop("web")
    with pytest.raises(PartialFailure) as caught:
        installer.engine.wait("web", wait=Readiness.parse("console:login:"))
    assert "web-1 is stopped" in str(caught.value.failures[0][1])


def test_wait_leaves_what_ends_otherwise(site):
    """A reboot that boots the same again needs nobody; one that ended was powered off."""
    site.engine.create("web", "t", count=1, start=True)
    site.machines.machines["web-1"] = attrs.evolve(
        site.machines.machines["web-1"], state=State.STOPPED
    )
    with pytest.raises(PartialFailure, match="1 of 1"):
        site.engine.wait("web", wait=Readiness.parse("console:login:"))


def test_an_installer_that_never_ends(installer, monkeypatch):
    monkeypatch.setattr(watching, "MAX_STARTS", 3)
    monkeypatch.setattr(watching, "POLL", 0.001)
    monkeypatch.setattr(readiness, "SLOW_POLL", 0.001)
    driver = installer.boot.driver
    resolve = driver.resolve_start

    def endless(requests):
        driver.on_reboot = "destroy"
        return resolve(requests)

    driver.resolve_start = endless
    with pytest.raises(PartialFailure) as caught:
        installer.engine.create("web", "t", count=1, wait=Readiness.parse("console:login:"))
    assert "web-1 is stopped" in str(caught.value.failures[0][1])
    assert len(driver.asked) == 1 + 3


def test_a_clone_that_cannot_be_started_again(installer):
    installer.engine.create("web", "t", count=1, start=True)
    installer.boot.driver.fail["web-1"] = InvalidRequest("web-1: nothing to boot")
    with pytest.raises(PartialFailure) as caught:
        installer.engine.wait("web", wait=Readiness.parse("console:login:"))
    assert str(caught.value.failures[0][1]) == "web-1: nothing to boot"


# --- one provider hands over to another -------------------------------------------------------


def test_a_provider_may_hand_over_to_another(site):
    site.boot.driver.handover = "second"
    site.engine.create("web", "t", count=2, start=True)
    assert site.machines.boots["web-2"] == BootConfig(devices=("hd",))


def test_handing_over_to_one_that_does_not_boot_there(site):
    site.boot.driver.handover = "disk"
    with pytest.raises(PartialFailure) as caught:
        site.engine.create("web", "t", count=1, start=True)
    assert "boot provider 'disk' doesn't boot on reference" in str(caught.value.failures[0][1])


def test_handing_over_again_is_refused(site):
    site.boot.driver.handover = "reference"
    with pytest.raises(PartialFailure) as caught:
        site.engine.create("web", "t", count=1, start=True)
    assert "hands over again" in str(caught.value.failures[0][1])


# --- identities -------------------------------------------------------------------------------


def test_words_of_an_identity_reach_the_kernel_of_each_start(site, tmp_path):
    site.engine.create("web", "t", count=1)
    clone = site.engine.show("web-1")
    kept = site.engine._host.records
    identity = Identity(
        hostname="web-1", machine_id="0" * 31 + "1", uuid=clone.domain.uuid,
        generation=clone.domain.uuid, interfaces=(), user="root",
    )  # fmt: skip
    kept.update(
        "web-1", identity=identity, values={"color": "red"}, seed=Seed(cmdline="hostname=web-1")
    )
    for _ in range(2):
        site.engine.restart("web")
        assert site.machines.boots["web-1"].cmdline == "hostname=web-1"
        assert site.boot.driver.asked[-1].values == {"color": "red"}


def test_words_that_no_kernel_would_hear():
    with pytest.raises(InvalidRequest, match="web-1: its identity needs a kernel command line"):
        told("web-1", BootConfig(devices=("hd",)), "hostname=web-1")
    loader = BootConfig(bootloader=Path("/pygrub"), cmdline="quiet")
    assert told("web-1", loader, "hostname=web-1").cmdline == "quiet hostname=web-1"
    with pytest.raises(InvalidRequest, match="over 2047"):
        told("web-1", loader, "x" * 2048)


@pytest.mark.parametrize("bad", ["\udcff", "\x9b31m", "\n", "\uffff"])
@pytest.mark.parametrize("words", ["", "hostname=web-1"])
def test_a_command_line_that_nobody_can_write(bad, words):
    boot = BootConfig(kernel=Path("/k"), devices=(), cmdline=f"quiet {bad}")
    with pytest.raises(InvalidRequest, match="web-1: its kernel command line has a control"):
        told("web-1", boot, words)


def test_a_provider_that_breaks_off_fails_for_that_clone_alone(site, monkeypatch):
    site.engine.create("web", "t", count=3)
    resolve = site.boot.driver.resolve_start

    def broken(requests):
        for request in requests:
            if request.labels.clone == "web-2":
                raise UnicodeEncodeError("utf-8", "\x1b\udcff", 1, 2, "surrogates not allowed")
            yield from resolve([request])

    monkeypatch.setattr(site.boot.driver, "resolve_start", broken)
    first, second, third = site.engine.boots("web")
    assert first.boot.origins == ("a kernel of web-1",)
    assert "web-2: resolve_start of boot provider 'reference' failed: UnicodeEncodeError" in str(
        second.error
    )
    assert third.boot.origins == ("a kernel of web-3",)
    with pytest.raises(PartialFailure) as caught:
        site.engine.start("web")
    assert [name for name, _ in caught.value.failures] == ["web-2"]
    assert sorted(site.files) == ["web-1/kernel", "web-3/kernel"]


# --- what would be booted -----------------------------------------------------------------------


def test_a_preview_starts_and_keeps_nothing(site):
    site.engine.create("web", "t", count=2)
    site.engine.start("web-2")
    stopped, running = site.engine.boots("web")
    assert (stopped.name, stopped.provider, stopped.running) == ("web-1", "reference", False)
    assert stopped.boot.origins == ("a kernel of web-1",)
    assert running.running
    assert running.boot.kernel == site.folder / "state/boot/web-2/kernel"
    (asked,) = [request for request in site.boot.driver.asked if request.dry_run]
    assert (asked.labels.clone, asked.folder) == ("web-1", None)
    assert site.machines.states() == {"web-1": State.STOPPED, "web-2": State.RUNNING}
    assert site.files == {"web-2/kernel": "start 1"}


def test_a_preview_of_what_boots_nothing(site):
    site.engine.create("web", "t", count=2)
    site.boot.driver.fail["web-1"] = InvalidRequest("web-1: nothing there")
    first, second = site.engine.boots("web")
    assert str(first.error) == "web-1: nothing there"
    assert second.boot is not None
    forget_templates(site.folder / "state")
    (site.folder / "templates/t.toml").unlink()
    assert all(isinstance(preview.error, NotFound) for preview in site.engine.boots("web"))
    with pytest.raises(NotFound):
        site.engine.boots("nothing")


def test_a_preview_of_a_definition(lab):
    lab.engine.create("web", "t1", count=1, start=True)
    (preview,) = lab.engine.boots("web")
    assert preview.boot == BootConfig(devices=("hd",))
    assert preview.running


def test_a_preview_of_a_clone_that_was_started_by_other_means_asks_nobody(site):
    """A server would be asked in its name, and its own lease given back."""
    site.engine.create("web", "t", count=1)
    machines = site.machines.machines
    machines["web-1"] = attrs.evolve(machines["web-1"], state=State.RUNNING)
    (preview,) = site.engine.boots("web")
    assert (preview.boot, preview.running) == (BootConfig(), True)
    assert site.boot.driver.asked == []


def run_by_a_loader(site, monkeypatch):
    """Have the hypervisor run a boot loader of the host at each start, as Xen does."""

    def resolve(_self, requests):
        for request in requests:
            yield Outcome(key=request.labels.clone, value=BootConfig(bootloader=Path("/loader")))

    monkeypatch.setattr(ReferenceBoot, "resolve", resolve)
    backend = attrs.evolve(site.boot.vmcloner_boot_provider(), at_start=frozenset())
    boots = {"reference": (backend, site.boot.driver)}
    monkeypatch.setattr(site.engine._host.drivers, "_boots", boots)


def test_a_preview_of_a_running_clone_does_not_run_its_boot_loader(site, monkeypatch):
    site.engine.create("web", "t", count=1)
    run_by_a_loader(site, monkeypatch)
    machines = site.machines.machines
    for state in (State.RUNNING, State.PAUSED):
        machines["web-1"] = attrs.evolve(machines["web-1"], state=state)
        (preview,) = site.engine.boots("web")
        assert (preview.boot, preview.running) == (BootConfig(bootloader=Path("/loader")), True)
    assert site.boot.driver.asked == []


def test_a_preview_looks_through_a_boot_loader_of_the_host(site, monkeypatch):
    site.engine.create("web", "t", count=1)
    run_by_a_loader(site, monkeypatch)
    (preview,) = site.engine.boots("web")
    assert preview.boot.origins == ("a kernel of web-1",)


def test_the_command(site, capsys, monkeypatch):
    monkeypatch.setattr(app.Shell, "engine", site.engine)
    site.engine.create("web", "t", count=2)
    site.boot.driver.fail["web-2"] = InvalidRequest("web-2: nothing there")
    assert app.main(["boot", "resolve", "web", "-f", "json"]) == 10
    said = capsys.readouterr()
    first, second = json.loads(said.out)
    assert first["kernel"] == "a kernel of web-1"
    assert (first["provider"], first["boots"], first["source"]) == ("reference", "kernel", "memory")
    assert (second["error"], second["boots"]) == ("web-2: nothing there", None)
    assert "1 of 2 clones would not boot" in said.err
    assert app.main(["boot", "resolve", "web-1"]) == 0
    said = capsys.readouterr()
    assert [
        line.split(maxsplit=1 + (n == 0)) for n, line in enumerate(said.out.splitlines()[1:])
    ] == [
        ["web-1", "provider", "reference"],
        ["boots", "kernel"],
        ["kernel", "a kernel of web-1"],
        ["source", "memory"],
    ]


def test_a_provider_that_fails_for_one_clone_defines_the_others(site, monkeypatch):
    run_by_a_loader(site, monkeypatch)
    resolve = ReferenceBoot.resolve

    def broken(driver, requests):
        if any(request.labels.index == 2 for request in requests):
            raise RuntimeError("broken")
        yield from resolve(driver, requests)

    monkeypatch.setattr(ReferenceBoot, "resolve", broken)
    with pytest.raises(PartialFailure) as caught:
        site.engine.create("web", "t", count=3)
    assert [name for name, _ in caught.value.failures] == ["web-2"]
    assert sorted(site.machines.machines) == ["web-1", "web-3"]
