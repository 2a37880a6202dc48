"""The boot providers, with the resolver's process played by a runner."""

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from vmcloner_core.drivers import BootRequest, DriverContext
from vmcloner_core.errors import HostCommandError, InvalidRequest
from vmcloner_core.images import build
from vmcloner_core.model import (
    Host,
    ImageSource,
    KernelSpec,
    Labels,
    Network,
    Nic,
    NicSpec,
    Template,
)
from vmcloner_core.process import CommandResult
from vmcloner_pxe import empty, rom
from vmcloner_pxe import provider as pypxeboot

BRIDGE = NicSpec(kind="bridge", source="br0")
NETWORK = NicSpec(kind="network", source="lan")


class Runner:
    """Plays the resolver: ``answers`` says what a clone's key gets."""

    def __init__(self, answers):
        self.answers = answers
        self.batches = []
        self.hold = threading.Event()
        self.hold.set()

    def run(self, argv, *, timeout=60.0, input=b"", env=None):  # noqa: A002
        batch = json.loads(input)
        self.batches.append(batch)
        self.hold.wait(30)
        results = [{"key": g["key"], **self.answers(g)} for g in batch["guests"]]
        return CommandResult(stdout=json.dumps(results).encode(), stderr=b"")

    def which(self, program):
        return program


FOUND = {
    "config": "tftp://10.0.0.1/pxelinux.cfg/default", "label": "linux", "kernel": "tftp://10.0.0.1/k",
    "initrds": ["tftp://10.0.0.1/i"], "arguments": "root=x", "files": ["kernel", "initrd"],
}  # fmt: skip


def provider(tmp_path, answers=lambda _guest: FOUND):
    runner = Runner(answers)
    context = DriverContext(host=Host(name="local", state=tmp_path), name="boot", runner=runner)
    return pypxeboot.Pypxeboot(context), runner


def template(*nics):
    return Template(name="t", image=ImageSource(path=Path("/i")), nics=nics or (BRIDGE,))


def request(index=1, *, card=BRIDGE, **changes):
    labels = Labels(
        fleet="web", index=index, template="t", run="r", owner="o", created="c",
        storage="s", hypervisor="kvm",
    )  # fmt: skip
    values = {
        "labels": labels,
        "template": template(card),
        "hypervisor": "kvm",
        "uuid": uuid.UUID(int=index),
        "volumes": (),
        "nics": (Nic(spec=card, mac=f"52:54:00:00:00:{index:02x}"),),
        "folder": Path(f"/boot/web-{index}"),
        "networks": (
            Network(name="lan", active=True, kind="bridge"),
            Network(name="lan", active=True, bridge="virbr7"),
            Network(name="routed", active=True),
        ),
    }
    return BootRequest(**(values | changes))


def test_on_kvm_a_kernel_is_booted_once(tmp_path):
    boot, runner = provider(tmp_path)
    [outcome] = boot.resolve_start([request()])
    config = outcome.unwrap()
    assert (config.kernel, config.initrd) == (
        Path("/boot/web-1/kernel"),
        Path("/boot/web-1/initrd"),
    )
    assert (config.cmdline, config.on_reboot) == ("root=x", "destroy")
    assert config.origins == ("tftp://10.0.0.1/k", "tftp://10.0.0.1/i")
    assert "'linux' of tftp://10.0.0.1/pxelinux.cfg/default" in config.source
    [batch] = runner.batches
    assert batch["interface"] == "br0"
    assert batch["guests"] == [
        {"key": "web-1", "mac": "52:54:00:00:00:01", "machine": str(uuid.UUID(int=1)),
         "folder": "/boot/web-1"}
    ]  # fmt: skip
    [definition] = boot.resolve([request()])
    assert (definition.unwrap().kernel, definition.unwrap().devices) == (None, ("hd",))


def test_on_xen_the_command_is_the_boot_loader(tmp_path):
    boot, runner = provider(tmp_path)
    [outcome] = boot.resolve([request(card=NETWORK, hypervisor="xen")])
    config = outcome.unwrap()
    assert config.bootloader.name == "pypxeboot"
    assert config.bootloader.is_absolute()
    assert config.bootloader_args == (
        *("--mac=52:54:00:00:00:01", "--interface=virbr7", f"--uuid={uuid.UUID(int=1)}"),
    )
    assert runner.batches == []  # the network is asked by libxl


@pytest.mark.parametrize(
    ("name", "message"),
    [("nosuch", "there is no network 'nosuch'"), ("routed", "network routed has no bridge")],
)
def test_a_network_without_a_bridge_is_an_error_of_those_on_it(tmp_path, name, message):
    boot, _runner = provider(tmp_path)
    card = NicSpec(kind="network", source=name)
    there, gone = boot.resolve_start([request(1), request(2, card=card)])
    assert there.unwrap().cmdline == "root=x"
    with pytest.raises(HostCommandError, match=message):
        gone.unwrap()


def test_localboot_is_another_providers(tmp_path):
    boot, _runner = provider(tmp_path, lambda _guest: {**FOUND, "local": True, "kernel": ""})
    [outcome] = boot.resolve_start([request()])
    assert (outcome.unwrap().handover, outcome.unwrap().kernel) == ("pygrub", None)


def test_each_failure_is_its_clones(tmp_path):
    def answers(guest):
        return {"error": "no DHCP offer"} if guest["key"] == "web-1" else FOUND

    boot, _runner = provider(tmp_path, answers)
    first, second = boot.resolve_start([request(1), request(2)])
    with pytest.raises(HostCommandError, match=r"^web-1: no DHCP offer"):
        first.unwrap()
    assert second.ok


def test_a_command_line_that_linux_would_cut_is_refused(tmp_path):
    boot, _runner = provider(tmp_path, lambda _guest: {**FOUND, "arguments": "a" * 2048})
    [outcome] = boot.resolve_start([request()])
    with pytest.raises(HostCommandError, match="2048 bytes, of 2047 at most"):
        outcome.unwrap()


def test_the_templates_own_words_are_added(tmp_path):
    boot, _runner = provider(tmp_path)
    spoken = attrs.evolve(template(), kernel=KernelSpec(cmdline="host={{ name }}"))
    [outcome] = boot.resolve_start([request(template=spoken)])
    assert outcome.unwrap().cmdline == "root=x host=web-1"
    [outcome] = boot.resolve([request(template=spoken, hypervisor="xen")])
    assert outcome.unwrap().cmdline == "host=web-1"


def test_a_dry_run_fetches_nothing(tmp_path):
    boot, runner = provider(tmp_path, lambda _guest: {**FOUND, "files": []})
    [outcome] = boot.resolve_start([request(folder=None, dry_run=True)])
    assert (outcome.unwrap().kernel, outcome.unwrap().cmdline) == (None, "root=x")
    assert runner.batches[0]["dry_run"] is True


def test_what_is_asked_meanwhile_is_asked_together(tmp_path):
    boot, runner = provider(tmp_path)
    runner.hold.clear()
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(lambda n: list(boot.resolve_start([request(n)])), 1)]
        while not runner.batches:
            time.sleep(0.01)
        asked += [pool.submit(lambda n: list(boot.resolve_start([request(n)])), n)
                  for n in range(2, 9)]  # fmt: skip
        while len(boot._queue._waiting) < 7:
            time.sleep(0.01)
        runner.hold.set()
        assert [f.result()[0].unwrap().cmdline for f in asked] == ["root=x"] * 8
    assert [len(batch["guests"]) for batch in runner.batches] == [1, 7]


@pytest.mark.parametrize("name", ["pypxeboot", "network"])
def test_a_card_of_user_mode_cannot_be_booted_from(tmp_path, name):
    boot = provider(tmp_path)[0] if name == "pypxeboot" else rom.NetworkBoot(None)
    for cards in ((NicSpec(),), ()):
        with pytest.raises(InvalidRequest, match="needs a network card"):
            boot.check(attrs.evolve(template(), nics=cards))
    boot.check(template())


def test_the_guests_own_rom(tmp_path):
    [outcome] = rom.NetworkBoot(None).resolve([request()])
    assert outcome.unwrap().devices == ("network", "hd")


def test_the_empty_image_is_a_small_disk_of_zeros(tmp_path):
    context = DriverContext(
        host=Host(name="local", state=tmp_path), name="empty", runner=Runner(None)
    )
    builder = empty.vmcloner_image_builder().factory(context)
    image = build(builder, tmp_path / "built", lambda _done, _total: None)
    assert (image.format, image.size) == ("raw", 1024**2)
    assert not any(image.path.read_bytes())
    assert image.path.stat().st_blocks == 0
