"""Keys of Ceph users: read from their files, given to libvirt, told to nobody."""

import base64
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import NetworkSource
from vmcloner_core.testing.samples import make_labels, make_volume
from vmcloner_libvirt import secrets
from vmcloner_libvirt.disk_sources import source_of
from vmcloner_libvirt.metadata import parse

KEY = base64.b64encode(b"sixteen bytes of key").decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a key"
    file.write_text(f'[client.other]\nkey = AAAA\n[client.vm]\n\tkey = {KEY}\n\tcaps mon = "x"\n')
    file.chmod(0o600)
    return file


class Daemon:
    """libvirt's calls for secrets."""

    def __init__(self):
        self.defined, self.values = [], []

    def secretDefineXML(self, xml):  # noqa: N802 - as libvirt has it
        self.defined.append(xml)
        return self

    def setValue(self, value):  # noqa: N802 - as libvirt has it
        self.values.append(value)


def domain(file: Path, **values: str) -> str:
    source = NetworkSource(protocol="rbd", name="vms/x", user="vm", key=file, **values)
    auth = secrets_of(source)
    return f"<domain><devices><disk><source>{auth}</source></disk></devices></domain>"


def secrets_of(source: NetworkSource) -> str:
    known = f"uuid='{source.secret}'" if source.secret else f"usage='{secrets.usage(source)}'"
    return f"<auth username='vm'><secret type='ceph' {known}/></auth>"


def test_a_domain_s_keys_are_given(file):
    daemon = Daemon()
    secrets.provide(daemon, domain(file))
    assert daemon.values == [b"sixteen bytes of key"]
    root = parse(daemon.defined[0])
    assert (root.get("ephemeral"), root.get("private")) == ("yes", "yes")
    assert "/" not in root.findtext("usage/name")  # libvirt's schema has none there
    secrets.provide(daemon, domain(file))
    assert daemon.defined[1] == daemon.defined[0]  # of the same UUID


def test_a_secret_of_the_administrator_is_left_alone(file):
    daemon = Daemon()
    secrets.provide(daemon, domain(file, secret="6f1cbc1e-5b1f-5a39-8d4f-3f2f0e6d1c01"))
    secrets.provide(daemon, "<domain><devices/></domain>")
    assert daemon.defined == []


def test_a_file_with_the_key_alone(file):
    file.write_text(f"{KEY}\n")
    assert secrets.key_in(file, "vm") == b"sixteen bytes of key"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[client.vm]\nkey = %%%\n",
        f"[client.other]\nkey = {KEY}\n",
        f"[x\n{KEY}",
        f"{KEY}%",
        "é",
    ],
)
def test_a_file_without_the_user_s_key(file, content):
    file.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        secrets.key_in(file, "vm")
    assert str(file) in caught.value.message
    assert KEY not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__}"


def test_an_image_in_a_namespace_is_refused(file):
    source = NetworkSource(protocol="rbd", name="vms/lab/x", user="vm", key=file)
    volume = make_volume(make_labels(), Path("/dev/rbd/vms/lab/x"), 4096)
    volume = attrs.evolve(volume, kind="network", network=source)
    with pytest.raises(InvalidRequest, match="in a namespace"):
        source_of(volume)


def test_a_file_that_others_could_have_written(file):
    file.chmod(0o666)
    with pytest.raises(InvalidRequest, match="a key"):
        secrets.key_in(file, "vm")
