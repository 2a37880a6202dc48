"""Captures that need no guest: on libvirt's own test driver, unsealed."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import make_site


@pytest.fixture
def paper(monkeypatch):
    site = make_site("test:///default")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site.folder / "config"))
    template = site.folder / "templates" / "plain.toml"
    template.write_text('disk_size = "2MiB"\nboot = "disk"\n' + template.read_text())
    yield site
    shutil.rmtree(site.folder)


def capture(site, *words, code=0):
    return site.run("template", "capture", f"{site.fleet('a')}-1", *words, "--no-seal", code=code)


def test_image_is_what_the_disk_is(paper):
    site = paper
    site.run("create", site.fleet("a"), "-t", "plain", "-n", "1")
    capture(site, "done")
    origin = site.folder / "state" / "pool" / "templates" / "done.raw"
    plain = (site.folder / "templates" / "image.raw").read_bytes()
    assert origin.read_bytes() == plain + bytes(1024**2)
    assert origin.stat().st_mode & 0o777 == 0o400
    for name in ("raw.raw", "out.qcow2", "small.qcow2"):
        words = ("--compress",) if name == "small.qcow2" else ()
        site.run("template", "export", "done", str(site.folder / name), *words)
        flat = site.folder / "flat.raw"
        file = site.folder / name
        argv = ["qemu-img", "convert", "-f", file.suffix[1:], "-O", "raw", file, flat]
        subprocess.run(argv, check=True, timeout=60)
        assert flat.read_bytes() == plain + bytes(1024**2)
        assert file.with_suffix(".toml").exists()
        site.run("template", "export", "done", str(file), *words, code=5)
        site.run("template", "export", "done", str(file), "--overwrite", *words)
    site.run("template", "export", "done", str(site.folder / "x.vmdk"), code=3)
    site.run("template", "export", "done", str(site.folder / "x.raw"), "--compress", code=3)
    # A template that extends it has its image, and keeps it.
    (site.folder / "templates" / "more.toml").write_text('extends = "done"\nmemory = "64MiB"\n')
    assert "more has its image" in site.run("template", "delete", "done", code=6)
    site.run("template", "import", "more")
    assert origin.with_name("more.raw").read_bytes() == origin.read_bytes()
    site.run("template", "delete", "more")
    (site.folder / "templates" / "more.toml").unlink()
    site.run("template", "delete", "done")
    assert not origin.exists()
    assert list((site.folder / "config").rglob("*.toml")) == []


def test_image_that_is_gone_is_told(paper):
    site = paper
    site.run("create", site.fleet("a"), "-t", "plain", "-n", "1")
    capture(site, "done")
    (site.folder / "state" / "pool" / "templates" / "done.raw").unlink()
    said = site.run("create", site.fleet("b"), "-t", "done", code=4)
    assert "is gone from pool" in said
    assert json.loads(capture(site, "done", "-f", "json"))["changed"] is True


def test_capture_of_another_clone_takes_no_name(paper):
    site = paper
    site.run("create", site.fleet("a"), "-t", "plain", "-n", "1")
    capture(site, "done")
    toml = site.folder / "config" / "vmcloner" / "templates" / "done.toml"
    text = toml.read_text()
    site.run("delete", site.fleet("a"), "--yes")
    time.sleep(1.1)  # labels have whole seconds
    site.run("create", site.fleet("a"), "-t", "plain", "-n", "1")
    assert "exists" in capture(site, "done", code=5)
    # An image without a template, of another clone: it isn't overwritten.
    toml.unlink()
    assert "template prune" in capture(site, "done", code=5)
    # What a user has changed stays.
    toml.write_text(text + "# mine\n")
    site.run("template", "delete", "done")
    assert toml.exists()


@pytest.mark.parametrize("after", [0.3, 0.5, 0.7, 0.9, 1.1, 1.5])
def test_kill_9_converges(paper, after):
    site = paper
    with (site.folder / "templates" / "image.raw").open("r+b") as stream:
        stream.truncate(64 * 1024**2)
        stream.write(os.urandom(32 * 1024**2))
    template = site.folder / "templates" / "plain.toml"
    template.write_text(template.read_text().replace('disk_size = "2MiB"\n', ""))
    site.run("create", site.fleet("a"), "-t", "plain", "-n", "1")
    words = ("template", "capture", f"{site.fleet('a')}-1", "done", "--no-seal")
    with site.popen(*words) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    site.run(*words)
    origin = site.folder / "state" / "pool" / "templates" / "done.raw"
    assert origin.read_bytes() == (site.folder / "templates" / "image.raw").read_bytes()
    left = site.run("gc", "--dry-run", "-f", "json")
    assert json.loads(left) == []
