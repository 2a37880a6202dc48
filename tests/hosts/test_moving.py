"""Clones that are moved between hosts: on engines of this process, with pools of real files."""

import os
import random

import pytest

from tests.hosts.conftest import Hosts, site
from vmcloner_core.extents import GRANULE
from vmcloner_core.hosts.carrier import Carrier, InProcess
from vmcloner_core.hosts.parcels import CHUNK
from vmcloner_core.model import State

IMAGE = bytes(2 * GRANULE) + random.Random(2).randbytes(CHUNK + 4096) + bytes(CHUNK)
CONTENT = random.Random(3).randbytes(2 * GRANULE)


@pytest.fixture(params=["overlay", "copy"])
def method(request):
    return request.param


@pytest.fixture
def lab(tmp_path, monkeypatch, method):
    """Three hosts with pools of files, and a template that the controller has."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    templates = tmp_path / "config/vmcloner/templates"
    templates.mkdir(parents=True)
    (templates / "t1.toml").write_text(TEXT)
    (templates / "image.raw").write_bytes(IMAGE)
    sites, besides = {}, {}
    for name in ("h1", "h2", "h3"):
        sites[name], besides[name] = site(tmp_path / name, name, storage="files", clone=method)
    hosts = Hosts(tmp_path, sites, InProcess(besides))
    yield hosts
    hosts.carrier.close()


TEXT = """
hypervisors = ["reference"]
boot = "reference"
memory = "128MiB"
swap = "1MiB"
[image]
path = "image.raw"
[identity]
provider = "cloud-init"
authorized_keys = []
"""


class Killed(BaseException):
    """The controller is killed."""


class Spy(Carrier):
    """Passes calls on, and notes them; ``fault`` may raise before or after one of them."""

    def __init__(self, carrier):
        self.carrier, self.calls = carrier, []
        self.fault = lambda host, name, when: None

    def connect(self, hosts):
        return self.carrier.connect(hosts)

    def call(self, host, name, text, event):
        self.fault(host, name, "before")
        self.calls.append((host, name))
        answer = self.carrier.call(host, name, text, event)
        self.fault(host, name, "after")
        return answer

    def close(self):
        self.carrier.close()


def test_a_clone_moves(lab):
    all_hosts = lab.controller()
    all_hosts.create("web", "t1", count=3)
    (clone,) = [c for c in all_hosts.list() if c.host == "h1"]
    print(clone, os.listdir(clone.volumes[0].path.parent))
    (moved,) = all_hosts.move(clone.name, host="h2")
    assert moved.error is None, moved
    (now,) = all_hosts.list(clone.name)
    assert now.host == "h2"
    assert now.state is State.STOPPED
