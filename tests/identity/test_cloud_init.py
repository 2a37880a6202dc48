"""What the provider cloud-init writes, read back by other eyes: a YAML parser, an ISO reader."""

import io
import subprocess
import uuid

import attrs
import pycdlib
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcloner_core.catalog import Catalog, shipped
from vmcloner_core.drivers import DriverContext, IdentityRequest
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import (
    Host,
    Identity,
    IdentitySpec,
    ImageSource,
    Interface,
    Nic,
    NicSpec,
    Template,
)
from vmcloner_core.records import new_host_key
from vmcloner_core.testing.samples import make_labels
from vmcloner_identity.cloud_init import MAX_USER_DATA, CloudInit
from vmcloner_identity.documents import check_user_data

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
PRIVATE, PUBLIC = new_host_key("web-7")


@pytest.fixture
def provider(tmp_path):
    host = Host(name="local", state=tmp_path)
    return CloudInit(DriverContext(host=host, name="cloud-init", runner=None))


def template(**identity):
    return Template(
        name="t1",
        image=ImageSource(builder="tiny"),
        identity=IdentitySpec(provider="cloud-init", **identity),
    )


def request(folder, of=None, fleet="web", values=None, **identity):
    labels = make_labels(fleet, 7, template="t1")
    settings = {
        "hostname": labels.clone,
        "machine_id": "a" * 32,
        "uuid": uuid.UUID(int=1),
        "generation": uuid.UUID(int=2),
        "interfaces": tuple(Interface(mac=mac) for mac in MACS),
        **identity,
    }
    return IdentityRequest(
        labels=labels,
        template=of or template(),
        identity=Identity(**settings),
        nics=tuple(Nic(spec=NicSpec(), mac=mac) for mac in MACS),
        values=values or {},
        folder=folder,
        host_key=PRIVATE,
        host_key_public=PUBLIC,
    )


def files(image):
    """Return what a guest reads: by Rock Ridge names, as Linux mounts it."""
    iso = pycdlib.PyCdlib()
    iso.open(str(image))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    found = {}
    for child in iso.list_children(rr_path="/"):
        if child.is_file():
            name = child.rock_ridge.name().decode()
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, rr_path=f"/{name}")
            found[name] = content.getvalue()
    iso.close()
    return found


def seeded(provider, asked):
    (outcome,) = provider.seed([asked])
    return files(outcome.unwrap().image)


def test_the_seed_says_who_the_clone_is(provider, tmp_path):
    found = seeded(provider, request(tmp_path, authorized_keys=(PUBLIC,)))
    assert set(found) == {"meta-data", "user-data", "vendor-data", "network-config", "vmcloner"}
    meta = yaml.safe_load(found["meta-data"])
    assert meta == {"instance-id": str(uuid.UUID(int=2)), "local-hostname": "web-7"}
    vendor = yaml.safe_load(found["vendor-data"])
    assert vendor["ssh_keys"] == {"ed25519_private": PRIVATE, "ed25519_public": f"{PUBLIC}\n"}
    assert vendor["users"] == [{"name": "root", "ssh_authorized_keys": [PUBLIC]}]
    assert vendor["disable_root"] is False
    assert "a" * 32 in vendor["bootcmd"][0][2]
    network = yaml.safe_load(found["network-config"])
    assert [card["match"]["macaddress"] for card in network["ethernets"].values()] == list(MACS)
    assert all(card["dhcp4"] is True for card in network["ethernets"].values())
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600


def test_freebsd_gets_all_in_its_user_data(provider, tmp_path):
    """nuageinit reads no vendor-data, and has the first line be nothing else."""
    freebsd = attrs.evolve(Catalog(tmp_path, (shipped(),)).template("freebsd-15.1"), name="t1")
    asked = request(tmp_path, of=freebsd, user="freebsd", authorized_keys=(PUBLIC,))
    content = seeded(provider, asked)["user-data"]
    assert content.splitlines()[0] == b"#cloud-config"
    data = yaml.safe_load(content)
    assert data["hostname"] == "web-7"
    assert data["ssh_keys"] == {"ed25519_private": PRIVATE, "ed25519_public": PUBLIC}
    (user,) = data["users"]
    assert (user["name"], user["ssh_authorized_keys"]) == ("freebsd", [PUBLIC])


def test_another_user_than_root(provider, tmp_path):
    vendor = yaml.safe_load(seeded(provider, request(tmp_path, user="ci"))["vendor-data"])
    assert (vendor["users"][0]["name"], vendor["disable_root"]) == ("ci", True)


def test_static_addresses(provider, tmp_path):
    cards = (Interface(mac=MACS[0], address="10.0.0.7/24"), Interface(mac=MACS[1]))
    asked = request(tmp_path, interfaces=cards, gateway="10.0.0.1", nameservers=("10.0.0.53",))
    first, second = yaml.safe_load(seeded(provider, asked)["network-config"])["ethernets"].values()
    assert first["addresses"] == ["10.0.0.7/24"]
    assert first["gateway4"] == "10.0.0.1"
    assert first["nameservers"] == {"addresses": ["10.0.0.53"]}
    assert "dhcp4" not in first
    assert second["dhcp4"] is True
    assert "gateway4" not in second


@pytest.mark.parametrize("name", ["1e3", "true", "no", "null", "0x10", "012", "1-2", "1.5", "~"])
def test_a_name_stays_a_text(provider, tmp_path, name):
    """YAML 1.1 and 1.2 readers alike: every text is quoted."""
    found = seeded(provider, request(tmp_path, hostname=name))
    assert yaml.safe_load(found["meta-data"])["local-hostname"] == name
    assert f'"{name}"'.encode() in found["meta-data"]
    assert yaml.safe_load(found["vendor-data"])["hostname"] == name.partition(".")[0]


MIME = (
    b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="x"\r\n\r\n'
    b"--x\r\nContent-Type: %s\r\n\r\n%s\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    "content",
    [
        b'#cloud-config\nruncmd:\n - [\'echo\', "it\'s {{ name }} \\"quoted\\""]\n',
        b"#!/bin/sh\r\necho \"{{\" '%}' \xff\x00\n",
        b"## template: jinja\n#cloud-config\nfqdn: {{ v1.local_hostname }}\n",
        b"#cloud-config\nkey: '" + b"x" * (MAX_USER_DATA - 22) + b"'\n",
        b"\x1f\x8b\x08\x00compressed",
        b"\n\n  #cloud-config\na: b\n",
        b"\t#!/bin/sh\n",
        b"#CLOUD-Config\na: b\n",
        b"## Template: Jinja\n#cloud-config\na: [{{ b }}\n",
        b"#include-once\nhttps://example.org/a\n",
        b"#cloud-config-archive\n- type: text/cloud-config\n  content: 'a: b'\n",
        b'#cloud-config-jsonp\n[{"op": "add", "path": "/a", "value": 1}]\n',
        b"#cloud-config\nfiles: ['MIME-Version: 1.0']\n",
        b"From nobody Sat Jan  1 00:00:00 2000\nContent-Type: multipart/mixed; boundary=x\n"
        b"MIME-Version: 1.0\n\n--x--\n",
        b"Subject: a\nmime-VERSION: 1.0\nContent-Type: text/plain\n\n\n#!/bin/sh\n",
        MIME % (b"text/cloud-config", b"a: b\n"),
        MIME % (b"text/x-shellscript", b"#!/bin/sh\n"),
        MIME % (b"text/plain", b"\n#Cloud-Config\na: b\n"),
        MIME % (b"application/x-gzip", b"packed"),
        MIME % (b"text/cloud-boothook", b"anything"),
        MIME % (b"text/x-shellscript-per-boot", b"anything"),
    ],
)
def test_user_data_is_passed_byte_for_byte(provider, tmp_path, content):
    file = tmp_path / "user-data"
    file.write_bytes(content)
    of = template(user_data=file)
    provider.check(of)
    assert seeded(provider, request(tmp_path, of))["user-data"] == content


def test_a_jinja_file_is_filled_in_for_each_clone(provider, tmp_path):
    file = tmp_path / "user-data.j2"
    file.write_text("#cloud-config\nwrite_files:\n- path: /etc/{{ hostname }}-{{ port }}\n")
    found = seeded(provider, request(tmp_path, template(user_data=file), values={"port": 8007}))
    assert yaml.safe_load(found["user-data"]) == {"write_files": [{"path": "/etc/web-7-8007"}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello\n", "cloud-init recognizes"),
        (b"", "cloud-init recognizes"),
        (b"#cloud-config\na: [\n", "not YAML"),
        (b"#cloud-config\n- a\n", "mapping"),
        (b"#cloud-config # mine\n- a\n", "mapping"),
        (b"#cloud-config\na: \x01\n", "not YAML"),
        (b"#!" + b"x" * MAX_USER_DATA, "larger than"),
        (b"\n#Cloud-Config\na: [\n", "not YAML"),
        (b"\xef\xbb\xbf#cloud-config\na: b\n", "cloud-init recognizes"),
        (b"# cloud-config\na: b\n", "cloud-init recognizes"),
        (b"a: b\n#cloud-config\n", "cloud-init recognizes"),
        (b"Content-Type: text/cloud-config\n\na: b\n", "cloud-init recognizes"),
        (
            b"\nMIME-Version: 1.0\nContent-Type: text/cloud-config\n\na: b\n",
            "cloud-init recognizes",
        ),
        (b"x" * 4096 + b"MIME-Version: 1.0\n", "cloud-init recognizes"),
        (b"MIME-Version: 1.0\n\n\xff", "MIME message that is not UTF-8"),
        (MIME % (b"text/cloud-config", b"- a\n"), "mapping"),
        (MIME % (b"text/plain", b"\n#cloud-config\na: [\n"), "not YAML"),
        (MIME % (b"text/html", b"<html>"), "cloud-init recognizes"),
        (MIME % (b"message/rfc822", b"a: b\n\nc\n"), "cloud-init recognizes"),
        (
            b"MIME-Version: 1.0\n"
            + b"".join(
                b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n)
                for n in range(2000)
            ),
            "nested too deeply",
        ),
        (MIME % (b"text/plain", b"hello"), "cloud-init recognizes"),
    ],
)
def test_user_data_that_would_be_ignored_is_refused(provider, tmp_path, content, reason):
    file = tmp_path / "user-data"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        provider.check(template(user_data=file))
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_jinja_file_that_gives_nonsense_fails_its_clone_only(provider, tmp_path):
    file = tmp_path / "user-data.j2"
    file.write_text("{% if port == 1 %}#cloud-config{% else %}nonsense{% endif %}\n")
    of = template(user_data=file)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    requests = [
        request(folders[0], of, values={"port": 1}),
        request(folders[1], of, fleet="db", values={"port": 2}),
    ]
    good, bad = provider.seed(requests)
    assert (good.key, good.ok, bad.key) == ("web-7", True, "db-7")
    assert isinstance(bad.error, InvalidRequest)
    assert list(folders[1].iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(provider, tmp_path, kind):
    import os

    file = tmp_path / "user-data"
    if kind == "folder":
        file.mkdir()
    if kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(InvalidRequest, match="user-data"):
        provider.check(template(user_data=file))


def test_a_network_config_of_ones_own(provider, tmp_path):
    file = tmp_path / "network"
    file.write_text("version: 1\nconfig: []\n")
    of = template(network_config=file)
    provider.check(of)
    assert seeded(provider, request(tmp_path, of))["network-config"] == file.read_bytes()
    file.write_text("- no mapping\n")
    with pytest.raises(InvalidRequest, match="mapping"):
        provider.check(of)


def test_seeding_again_replaces_the_seed(provider, tmp_path):
    seeded(provider, request(tmp_path))
    again = seeded(provider, request(tmp_path, hostname="other"))
    assert yaml.safe_load(again["meta-data"])["local-hostname"] == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["seed.iso"]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [b"MIME-Version: 1.0\n", b"Content-Type: multipart/mixed; boundary=x\n", b"\n",
             b"--x\n", b"--x--\n", b"#cloud-config\n", b"a: b\n",
             b"Content-Type: text/cloud-config\n",
             b"Content-Type: message/rfc822\n", b"Content-Transfer-Encoding: base64\n", b"#!",
             b"Content-Type: ;;=\n", b"\xff", b"=?utf-8?q?=\n"]
        )
    )
)  # fmt: skip
def test_any_user_data_is_taken_or_refused(parts):
    try:
        check_user_data(b"".join(parts), "user-data")
    except InvalidRequest as error:
        assert error.message.startswith("user-data: ")


@pytest.mark.parametrize("value", ["!!timestamp x", "!!bool x", "!!int ''", "!!float ''"])
def test_yaml_whose_tag_does_not_fit_its_value_is_refused(value):
    with pytest.raises(InvalidRequest, match="not YAML"):
        check_user_data(f"#cloud-config\na: {value}\n".encode(), "user-data")


def test_nameservers_reach_cards_on_dhcp(provider, tmp_path):
    """They replace those that DHCP names: the template says them."""
    asked = request(tmp_path, nameservers=("192.0.2.53", "2001:db8::53"))
    cards = yaml.safe_load(seeded(provider, asked)["network-config"])["ethernets"].values()
    for card in cards:
        assert card["dhcp4"] is True
        assert card["nameservers"] == {"addresses": ["192.0.2.53", "2001:db8::53"]}
        assert card["dhcp4-overrides"] == {"use-dns": False}
    plain = yaml.safe_load(seeded(provider, request(tmp_path))["network-config"])["ethernets"]
    assert all("nameservers" not in card for card in plain.values())
    assert all("dhcp4-overrides" not in card for card in plain.values())


def test_a_gateway_that_no_card_reaches_is_refused(provider, tmp_path):
    far = (Interface(mac=MACS[0], address="10.0.0.7/24"), Interface(mac=MACS[1]))
    with pytest.raises(InvalidRequest, match=r"identity\.gateway: 192\.0\.2\.1 is not on"):
        provider.check_seed(request(tmp_path, interfaces=far, gateway="192.0.2.1"))
    near = (Interface(mac=MACS[0]), Interface(mac=MACS[1], address="192.0.2.7/24"))
    for cards in (near, (Interface(mac=MACS[0]),)):
        provider.check_seed(request(tmp_path, interfaces=cards, gateway="192.0.2.1"))


@pytest.mark.parametrize("user", ["ci", "root"])
def test_the_shell_is_one_that_the_image_has(provider, tmp_path, user):
    vendor = yaml.safe_load(seeded(provider, request(tmp_path, user=user))["vendor-data"])
    assert "shell" not in vendor["users"][0]
    early = [command for command in vendor["bootcmd"] if "useradd" in command[-1]]
    assert len(early) == (user != "root")
    for command in early:  # where there is no bash it changes nothing, and succeeds
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "sh").symlink_to("/bin/sh")
        told = tmp_path / "told"
        (tools / "useradd").write_text(f'#!/bin/sh\necho "$@" >{told}\n')
        (tools / "useradd").chmod(0o755)
        subprocess.run(command, env={"PATH": str(tools)}, check=True, timeout=20)
        assert not told.exists()
        (tools / "bash").symlink_to("/bin/bash")
        subprocess.run(command, env={"PATH": str(tools)}, check=True, timeout=20)
        assert told.read_text() == f"-D -s {tools}/bash\n"
        (tools / "useradd").unlink()
        subprocess.run(command, env={"PATH": str(tools)}, check=True, timeout=20)
