"""Machines of an image that was pulled from a publisher's mirror, on the real libvirtd."""

import hashlib
import json
import shutil
import subprocess

import pytest

from tests.publisher import publishing

pytestmark = pytest.mark.libvirt

TEMPLATE = """
extends = "tiny"
[image]
url = "https://images.example/tiny/latest/tiny.qcow2"
checksums = "https://images.example/tiny/latest/SHA256SUMS"
[kernel]
path = "vmlinuz"
"""


@pytest.fixture
def tiny(site, tmp_path):
    """The tiny image as qcow2; its kernel is beside the site's templates."""
    site.run("image", "build", "tiny", timeout=300)
    (kernel,) = (site.folder / "state").rglob("tiny/vmlinuz")
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(kernel.with_name(name), site.folder / "templates")
    image = tmp_path / "tiny.qcow2"
    convert = ["qemu-img", "convert", "-O", "qcow2", kernel.with_name("disk.raw"), image]
    subprocess.run(convert, check=True, timeout=60)
    return image.read_bytes()


@pytest.mark.timeout(900)
def test_machines_of_an_image_that_was_pulled(site, tiny, tmp_path, monkeypatch):
    fleet, template = site.fleet("web"), site.fleet("pulled")
    file = site.folder / "templates" / f"{template}.toml"
    file.write_text(TEMPLATE)
    image, sums = "/mirror/tiny/latest/tiny.qcow2", "/mirror/tiny/latest/SHA256SUMS"
    with publishing(tmp_path) as publisher:
        monkeypatch.setenv("SSL_CERT_FILE", str(publisher.ca))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        digest = hashlib.sha256(tiny).hexdigest()
        publisher.add(image, tiny, sums, f"{'0' * 64} *other.qcow2\n{digest} *tiny.qcow2\n")
        said = site.run("create", fleet, "-t", template, "-n", "2", code=4)
        assert f"vmcloner template pull {template}" in said
        pull = ("template", "pull", template, "--mirror", f"{publisher.url}/mirror")
        publisher.cuts[image] = len(tiny) // 2
        site.run(*pull, code=9)
        assert json.loads(site.run(*pull, "-f", "json"))["sha256"] == digest
        assert f"bytes={len(tiny) // 2}-" in [ranges for _, _, ranges in publisher.asked]
    site.run("create", fleet, "-t", template, "-n", "2", "--start", "--wait", timeout=600)
    for row in site.rows(fleet):
        assert f"name={row['name']} " in site.run("console", row["name"], "--log")
    site.run("delete", fleet, "--yes")
    file.unlink()
    site.run("template", "prune", "--yes")
    assert site.remains() == []
