"""The template of Windows that the guide has: its XML is checked, no Windows runs here."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from lxml import etree

from vmcloner_core import Engine

GUIDE = (Path(__file__).parents[2] / "docs/windows.md").read_text()
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def block(language):
    """Return the block of this language in the guide."""
    (text,) = re.findall(rf"(?sm)^```{language}\n(.*?)^```", GUIDE)
    return text


def write(site):
    """Write the template as the guide says; its image is an empty disk."""
    folder = site.folder / "templates"
    text = block("toml")
    for theirs, ours in (  # not the network of the host: tests make none of that name
        ('kind = "network"\nsource = "vmcloner"', 'kind = "user"'),
        ('ready = "port:22"', 'ready = "running"'),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    (folder / "windows.toml").write_text(text)
    (folder / "windows.xml.j2").write_text(block("xml"))
    (folder / "windows.user-data.j2").write_text(block("yaml"))
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "windows.qcow2"), "1G"]
    subprocess.run(argv, check=True, timeout=60)


def judge(xml):
    """Check a domain's XML against libvirt's schema, and for what Windows needs."""
    root = etree.fromstring(xml)
    etree.RelaxNG(etree.parse(SCHEMA)).assertValid(root)
    assert root.find("clock").get("offset") == "localtime"
    assert root.find("devices/tpm/backend").get("version") == "2.0"
    assert root.find("features/smm").get("state") == "on"
    assert root.find("devices/disk[@device='cdrom']/target").get("bus") == "sata"
    assert root.find("devices/interface/model").get("type") == "e1000e"
    return root


def test_the_schema_accepts_it(paper_site, monkeypatch):
    """Under emulation, and as it is with KVM."""
    write(paper_site)
    monkeypatch.chdir(paper_site.folder)
    own = paper_site.folder / "templates" / "windows.xml.j2"
    with Engine.open(config=paper_site.folder / "vmcloner.toml") as engine:
        engine.create("win", "windows")
        judge(engine.domain_xml("win-1"))
        engine.delete("win")
    own.write_text(own.read_text().replace('domain_type == "kvm"', "true"))
    with Engine.open(config=paper_site.folder / "vmcloner.toml") as engine:
        engine.create("fast", "windows")
        root = judge(engine.domain_xml("fast-1"))
        assert root.find("features/hyperv/synic").get("state") == "on"
        engine.delete("fast")


def test_each_clone_gets_its_keys(paper_site, monkeypatch):
    write(paper_site)
    monkeypatch.chdir(paper_site.folder)
    with Engine.open(config=paper_site.folder / "vmcloner.toml") as engine:
        engine.create("win", "windows")
        seed = engine.host.records / "win-1"
        (image,) = seed.glob("seed*")
        text = image.read_bytes()
        assert b"administrators_authorized_keys" in text
        document = text[text.index(b"#cloud-config\nwrite_files") :].partition(b"\0")[0]
        files = {each["path"]: each["content"] for each in yaml.safe_load(document)["write_files"]}
        folder = "C:\\ProgramData\\ssh\\"
        assert files[f"{folder}administrators_authorized_keys"].startswith("ssh-")
        assert "OPENSSH PRIVATE KEY" in files[f"{folder}ssh_host_ed25519_key"]
        public = files[f"{folder}ssh_host_ed25519_key.pub"].split()
        assert public[1] in (seed / "known_hosts").read_text()
        engine.delete("win")


@pytest.mark.libvirt
def test_libvirt_accepts_it(site):
    """The host's firmware, TPM emulator, processor and QEMU have what it needs."""
    write(site)
    rows = json.loads(site.run("template", "check", "windows", "-f", "json"))
    assert {row["status"] for row in rows} <= {"ok", "warning"}, rows
    win = site.fleet("win")
    site.run("create", win, "-t", "windows")
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    argv = [*virsh, "dumpxml", "--inactive", f"{win}-1"]
    judge(subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout)
    argv = [*virsh, "domxml-to-native", "qemu-argv", "--domain", f"{win}-1"]
    native = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "tpm-crb" in native
