"""What is shipped passes the suites for boot providers, image builders, observers and commands."""

import sys
from importlib import metadata
from pathlib import Path

import attrs
import pytest

from tests.boot.disks import disk, ext
from tests.boot.test_pygrub import FILES
from tests.tiny.test_builder import DEBIAN, Archive
from vmcloner_boot.disk import DiskBoot
from vmcloner_boot.kernel import KernelBoot
from vmcloner_boot.pygrub import PygrubBoot
from vmcloner_core.cli.events import Events
from vmcloner_core.hooks import hookimpl
from vmcloner_core.model import ImageSource, KernelSpec, NicSpec, Template
from vmcloner_core.testing.boot import BootConformance
from vmcloner_core.testing.command import CommandConformance, parser_of
from vmcloner_core.testing.image import ImageConformance
from vmcloner_core.testing.observer import ObserverConformance
from vmcloner_core.testing.reference import ReferenceBoot
from vmcloner_pxe.empty import EmptyBuilder
from vmcloner_pxe.rom import NetworkBoot
from vmcloner_tiny.builder import TinyBuilder

IMAGE = ImageSource(path=Path("image.raw"))


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guest")
    return disk(folder / "disk.raw", "gpt", [ext(folder / "root", FILES)])


class TestReferenceBoot(BootConformance):
    at_start = True

    @pytest.fixture
    def provider(self):
        return ReferenceBoot()


class TestDisk(BootConformance):
    @pytest.fixture
    def provider(self, vmcloner_context):
        return DiskBoot(vmcloner_context("disk"))


class TestNetwork(BootConformance):
    @pytest.fixture
    def provider(self, vmcloner_context):
        return NetworkBoot(vmcloner_context("network"))

    @pytest.fixture
    def template(self):
        return Template(name="tiny", image=IMAGE, nics=(NicSpec(kind="network", source="default"),))


class TestKernel(BootConformance):
    @pytest.fixture
    def provider(self, vmcloner_context):
        return KernelBoot(vmcloner_context("kernel"))

    @pytest.fixture
    def template(self, tmp_path):
        (tmp_path / "vmlinuz").write_bytes(FILES["boot/vmlinuz"])
        kernel = KernelSpec(path=Path("vmlinuz"), cmdline="quiet name={{ name }} mac={{ mac }}")
        return Template(name="tiny", image=IMAGE, kernel=kernel, folder=tmp_path)


class TestPygrub(BootConformance):
    at_start = True

    @pytest.fixture
    def provider(self, vmcloner_context):
        return PygrubBoot(vmcloner_context("pygrub"))

    @pytest.fixture(autouse=True)
    def keep_guest(self, guest):
        self.guest = guest

    def fill_disk(self, path):
        path.write_bytes(self.guest.read_bytes())


class TestPygrubOnXen(TestPygrub):
    hypervisor = "xen"
    at_start = False


class TestEmpty(ImageConformance):
    @pytest.fixture
    def builder(self, vmcloner_context):
        return EmptyBuilder(vmcloner_context("empty"))


class TestTiny(ImageConformance):
    @pytest.fixture
    def builder(self, vmcloner_context):
        context = attrs.evolve(vmcloner_context("tiny"), runner=Archive(DEBIAN))
        return TinyBuilder(context)


class Recorder:
    """An observer, a policy and a veto in one."""

    @hookimpl
    def vmcloner_step_changed(self, event):
        str(event)

    @hookimpl
    def vmcloner_preflight(self, plan):
        len(plan.clones)

    @hookimpl
    def vmcloner_clone_mac(self, labels, attempt):
        return f"52:54:00:00:{attempt:02x}:{labels.index:02x}"


class TestObserver(ObserverConformance):
    @pytest.fixture
    def observer(self):
        return Recorder()


class TestEvents(CommandConformance):
    name = "events"

    @pytest.fixture
    def command(self):
        return Events


COMMANDS = {
    entry.name.replace("_", " "): entry
    for entry in metadata.entry_points(group="vmcloner.cli")
    if entry.dist is not None and entry.dist.name == "vmcloner"
}


@pytest.mark.parametrize("name", COMMANDS)
def test_all_commands_pass_their_suite(name):
    command = COMMANDS[name].load()
    suite = type("Each", (CommandConformance,), {"name": name})()
    parser = parser_of(command, name)
    for test in (name for name in dir(suite) if name.startswith("test_")):
        method = getattr(suite, test)
        wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        given = {"command": command, "parser": parser}
        method(**{key: given[key] for key in wanted})


def test_pytest_loads_the_plugin(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("vmcloner-conformance")
    assert "vmcloner_core.testing.pytest_plugin" in sys.modules
