"""A pipe in the place of any file that is read is refused or passed over, never waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VMCLONER = Path(sys.executable).with_name("vmcloner")
SETTINGS = """
[hosts.local]
state = "{folder}/state"
[hosts.local.hypervisor.kvm]
uri = "test:///default"
"""
TEMPLATE = """
hypervisors = ["kvm"]
boot = "kernel"
memory = "32MiB"
[image]
path = "image.raw"
[kernel]
path = "kernel"
initrd = "initrd"
[domain]
xml = "own.xml"
[identity]
provider = "cloud-init"
authorized_keys = ["{folder}/keys.pub"]
user_data = "user-data"
network_config = "network-config"
[ssh]
key = "key"
"""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0nLSrGMpIoVkRRzJAuzJTyhFxg5Qr0dsdVzzxJ+Ake a\n"
CREATE = ("create", "web", "-t", "t", "--values", "values.csv", "--dry-run")


@pytest.fixture
def site(tmp_path):
    """A folder with one of each file that a command may read."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (tmp_path / "vmcloner.toml").write_text(SETTINGS.format(folder=tmp_path))
    (tmp_path / "keys.pub").write_text(KEY)
    (tmp_path / "values.csv").write_text("clone,role\n1,db\n")
    (tmp_path / "guest.cfg").write_text("name = 'a'\ndisk = ['/x/a.raw,raw,xvda,rw']\n")
    (tmp_path / "guest.conf").write_text("vmname a\n")
    (templates / "t.toml").write_text(TEMPLATE.format(folder=tmp_path))
    (templates / "image.raw").write_bytes(bytes(65536))
    (templates / "kernel").write_bytes(bytes(0x202) + b"HdrS" + bytes(2000))
    (templates / "initrd").write_bytes(b"\x1f\x8b" + bytes(100))
    (templates / "user-data").write_text("#cloud-config\n{}\n")
    (templates / "network-config").write_text("version: 2\n")
    (templates / "own.xml").write_text('{% extends "domain.xml.j2" %}')
    (templates / "key").write_text("x")
    return tmp_path


def command(site, *words):
    done = subprocess.run(
        [str(VMCLONER), *words], cwd=site, capture_output=True, text=True, timeout=60,
        check=False, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(site)},
    )  # fmt: skip
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def make_pipe(path):
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def test_the_files_themselves_are_fine(site):
    code, said = command(site, *CREATE)
    assert code == 0, said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vmcloner.toml", CREATE),
        ("values.csv", CREATE),
        ("keys.pub", CREATE),
        ("templates/t.toml", CREATE),
        ("templates/image.raw", ("template", "import", "t")),
        ("templates/user-data", CREATE),
        ("templates/network-config", CREATE),
        ("templates/kernel", ("template", "check", "t")),
        ("templates/initrd", ("template", "check", "t")),
        ("templates/own.xml", ("template", "check", "t")),
        ("guest.cfg", ("template", "import-legacy", "guest.cfg", "guest.conf")),
        ("guest.conf", ("template", "import-legacy", "guest.cfg", "guest.conf")),
        ("vmcloner.conf", ("settings", "import-legacy", "vmcloner.conf")),
    ],
)
def test_a_pipe_in_the_place_of_a_file_that_is_named(site, name, words):
    make_pipe(site / name)
    code, said = command(site, *words)
    assert code != 0
    assert Path(name).name in said


@pytest.mark.parametrize(
    "name",
    [
        "state/id",
        "state/identity/web-1/record.json",
        "state/identity/web-1/known_hosts",
        "state/boot/web-1/boot.json",
        "state/console/web-1.log",
        ".ssh/id_x.pub",
    ],
)
@pytest.mark.parametrize("words", [("list",), CREATE, ("gc", "--dry-run")], ids=lambda w: w[0])
def test_a_pipe_in_the_state_folder(site, name, words):
    make_pipe(site / name)
    command(site, *words)
