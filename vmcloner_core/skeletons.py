"""Skeletons of plugins: distributions that pass their conformance suite before a line is changed.

Drivers of storage and hypervisors begin as the reference drivers, which keep everything in memory:
their authors replace one method after the other, and the suite says what is still wrong.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

from vmcloner_core.errors import Conflict, InvalidRequest

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_NAME = 40

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "vmcloner-$name"
version = "0.1.0"
description = "$title for vmcloner"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["vmcloner"]

[project.entry-points."vmcloner.$group"]
$entry = "$value"

[tool.setuptools]
py-modules = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """\
# vmcloner-$name

$title for [vmcloner](https://github.com/vmcloner/vmcloner/blob/main/docs/plugins.md).

    pip install -e .
    pytest -rs
    vmcloner plugin list

`$module.py` is the plugin. `tests/test_$module.py` runs vmcloner's conformance suite on it: it
passes as it is, and says what is wrong while you change the plugin into what it shall be.
"""

STORAGE = '''\
"""Storage backend $name for vmcloner."""

import attrs

from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_core.testing.reference import ReferenceStorage


@attrs.frozen(kw_only=True)
class ${cls}Settings:
    """The table [hosts.HOST.storage.$name] of the settings file."""

    path: str = ""


class ${cls}Driver(ReferenceStorage):
    """Keeps everything in memory at first. Replace its methods, then derive it from
    vmcloner_core.drivers.SimpleStorageDriver, and set copies = True if it copies bytes.
    """

    def __init__(self, context, settings):
        super().__init__(context, settings)
        self.settings = settings


@hookimpl
def vmcloner_storage_backend():
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="$name",
        description="$title",
        factory=${cls}Driver,
        settings=${cls}Settings,
    )
'''

STORAGE_TEST = """\
import contextlib

import pytest

from $module import ${cls}Driver, ${cls}Settings
from vmcloner_core.testing.storage import StorageConformance


class Test$cls(StorageConformance):
    @pytest.fixture
    def open_driver(self, vmcloner_context):
        self.pool = ${cls}Driver(vmcloner_context("$name"), ${cls}Settings())
        return lambda: self.pool  # once volumes outlive the driver: a new one at each call

    # What follows is for volumes in memory. Remove it once they are files or devices.

    def read(self, volume):
        return self.pool.contents[volume.name].ljust(volume.size, b"\\0")

    def write(self, volume, offset, data):
        old = self.read(volume)
        self.pool.contents[volume.name] = old[:offset] + data + old[offset + len(data) :]

    def put_foreign(self, volume):
        self.pool.foreign.add(volume.name)

    def check_foreign(self, volume):
        assert volume.name in self.pool.foreign
        assert volume.name not in self.pool.disks

    @contextlib.contextmanager
    def busy(self, volume):
        self.pool.busy.add(volume.name)
        yield 1
        self.pool.busy.clear()
"""

HYPERVISOR = '''\
"""Hypervisor backend $name for vmcloner."""

import attrs

from vmcloner_core.hooks import HypervisorBackend, hookimpl
from vmcloner_core.testing.reference import ReferenceHypervisor


@attrs.frozen(kw_only=True)
class ${cls}Settings:
    """The table [hosts.HOST.hypervisor.$name] of the settings file."""

    uri: str = ""


class ${cls}Driver(ReferenceHypervisor):
    """Keeps domains in memory at first. Replace its methods and its optional interfaces, then
    derive it from vmcloner_core.drivers.HypervisorDriver.
    """

    kind = "$name"

    def __init__(self, context, settings):
        super().__init__(context, settings)
        self.settings = settings


@hookimpl
def vmcloner_hypervisor_backend():
    """Describe the backend."""
    return HypervisorBackend(
        api=1,
        name="$name",
        description="$title",
        factory=${cls}Driver,
        settings=${cls}Settings,
    )
'''

HYPERVISOR_TEST = """\
import pytest

from $module import ${cls}Driver, ${cls}Settings
from vmcloner_core.model import BootConfig, DomainSpec, clone_uuid
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_core.testing.samples import make_nic


class Test$cls(HypervisorConformance):
    @pytest.fixture
    def driver(self, vmcloner_context):
        driver = ${cls}Driver(vmcloner_context("$name"), ${cls}Settings())
        yield driver
        driver.close()

    @pytest.fixture
    def make_spec(self):
        def make(labels):
            return DomainSpec(
                labels=labels,
                uuid=clone_uuid("local", labels.fleet, labels.index, labels.template),
                memory=64 * 1024**2,
                vcpus=1,
                boot=BootConfig(),
                volumes=(),
                nics=(make_nic(labels.index % 250),),
            )

        return make
"""

IDENTITY = '''\
"""Identity provider $name for vmcloner."""

from vmcloner_core.drivers import IdentityProvider
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.model import Outcome, Seed


class ${cls}Provider(IdentityProvider):
    """Gives guests a disk with their name: one line, then zeros."""

    def __init__(self, context):
        self.context = context

    def check(self, template):
        """See IdentityProvider.check: any template will do."""

    def seed(self, requests):
        """See IdentityProvider.seed."""
        for request in requests:
            image = request.folder / "seed.img"
            image.write_bytes(f"{request.identity.hostname}\\n".encode().ljust(512, b"\\0"))
            yield Outcome(key=request.labels.clone, value=Seed(image=image))


@hookimpl
def vmcloner_identity_provider():
    """Describe the provider."""
    return IdentityBackend(
        api=1, name="$name", description="$title", factory=${cls}Provider
    )
'''

BOOT = '''\
"""Boot provider $name for vmcloner."""

from vmcloner_core.drivers import BootProvider
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome


class ${cls}Provider(BootProvider):
    """Boots clones from their disks."""

    def __init__(self, context):
        self.context = context

    def check(self, template):
        """See BootProvider.check: any template will do."""

    def resolve(self, requests):
        """See BootProvider.resolve."""
        for request in requests:
            config = BootConfig(devices=("hd",), source="its first disk")
            yield Outcome(key=request.labels.clone, value=config)


@hookimpl
def vmcloner_boot_provider():
    """Describe the provider."""
    return BootBackend(api=1, name="$name", description="$title", factory=${cls}Provider)
'''

IMAGE = '''\
"""Image builder $name for vmcloner."""

from vmcloner_core.drivers import ImageBuilder
from vmcloner_core.hooks import ImageBackend, hookimpl

SIZE = 1024**2


class ${cls}Builder(ImageBuilder):
    """Makes a disk with nothing on it."""

    def __init__(self, context):
        self.context = context

    def fingerprint(self):
        """See ImageBuilder.fingerprint: there is one such image."""
        return f"$name {SIZE}"

    def build(self, folder, progress):
        """See ImageBuilder.build."""
        disk = folder / "disk.raw"
        with disk.open("wb") as stream:
            stream.truncate(SIZE)
        progress(SIZE, SIZE)
        return disk


@hookimpl
def vmcloner_image_builder():
    """Describe the builder."""
    return ImageBackend(api=1, name="$name", description="$title", factory=${cls}Builder)
'''

OBSERVER = '''\
"""Observer $name for vmcloner."""

import logging

from vmcloner_core.hooks import hookimpl

VMCLONER_API = 1
log = logging.getLogger(__name__)


@hookimpl
def vmcloner_run_finished(result):
    """Log how a run ended."""
    log.info("run %s: %d of %d failed", result.plan.run, len(result.failures), len(result.results))
'''

COMMAND = '''\
"""The command "vmcloner $name"."""

from vmcloner_core.cli.base import Base


class Command(Base):
    """Count the clones of this host."""

    example = "vmcloner $name --fleet web"

    def get_parser(self, prog_name):
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--fleet", metavar="NAME", help="Only those of this fleet.")
        return parser

    def take_action(self, parsed_args):
        """Print the number."""
        clones = self.engine.list()
        wanted = [c for c in clones if parsed_args.fleet in (None, c.fleet)]
        self.app.stdout.write(f"{len(wanted)}\\n")
'''

_MADE_TEST = """\
import pytest

from $module import $made
from vmcloner_core.testing.$kind import ${suite}Conformance


class Test$cls(${suite}Conformance):
    @pytest.fixture
    def $fixture(self, vmcloner_context):
        return $made(vmcloner_context("$name"))
"""

OBSERVER_TEST = """\
import pytest

import $module
from vmcloner_core.testing.observer import ObserverConformance


class Test$cls(ObserverConformance):
    @pytest.fixture
    def observer(self):
        return $module
"""

COMMAND_TEST = """\
import pytest

from $module import Command
from vmcloner_core.testing.command import CommandConformance


class Test$cls(CommandConformance):
    name = "$name"

    @pytest.fixture
    def command(self):
        return Command
"""


def _made_test(kind: str, suite: str, fixture: str, made: str) -> str:
    words = {"kind": kind, "suite": suite, "fixture": fixture, "made": made}
    return string.Template(_MADE_TEST).safe_substitute(words)


KINDS = {
    "storage": ("Storage backend", STORAGE, STORAGE_TEST),
    "hypervisor": ("Hypervisor backend", HYPERVISOR, HYPERVISOR_TEST),
    "boot": ("Boot provider", BOOT, _made_test("boot", "Boot", "provider", "${cls}Provider")),
    "identity": (
        "Identity provider",
        IDENTITY,
        _made_test("identity", "Identity", "provider", "${cls}Provider"),
    ),
    "image": ("Image builder", IMAGE, _made_test("image", "Image", "builder", "${cls}Builder")),
    "observer": ("Observer", OBSERVER, OBSERVER_TEST),
    "command": ("Command", COMMAND, COMMAND_TEST),
}
"""By kind: what it is called, its module, and its test."""


def write(name: str, kind: str, folder: Path) -> tuple[Path, ...]:
    """Write the skeleton of a plugin into a folder that doesn't exist; returns its files.

    :raises InvalidRequest: the name isn't one that a plugin can have.
    :raises Conflict: something has the folder's name.
    """
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise InvalidRequest(
            f"not a name for a plugin: {name!r}",
            hint=f"lower-case letters, digits and hyphens, at most {MAX_NAME}",
        )
    title, module, test = KINDS[kind]
    own = f"vmcloner_{name.replace('-', '_')}"
    words = {
        "name": name,
        "title": f"{title} {name}",
        "cls": "".join(part.capitalize() for part in name.split("-")),
        "module": own,
        "group": "cli" if kind == "command" else kind,
        "entry": name,
        "value": f"{own}:Command" if kind == "command" else own,
    }
    texts = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{own}.py": module,
        f"tests/test_{own}.py": test,
    }
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise Conflict(f"{folder} is there already", hint="--folder DIR") from error
    (folder / "tests").mkdir()
    for file, text in texts.items():
        (folder / file).write_text(string.Template(text).substitute(words))
    return tuple(folder / file for file in texts)
