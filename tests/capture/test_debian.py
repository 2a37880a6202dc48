"""A Debian that was built here and set up over ssh becomes a template: five clones are somebody."""

import json
import shutil
import subprocess

import pytest

from tests.identity.debians import debians

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.guests,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
]
COUNT = 5
CONTROL = """Package: vmcloner-proof
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.com>
Description: proof that a package was installed
"""
# What isn't needed here and takes an emulated processor long.
ARGUMENTS = (
    "systemd.default_timeout_start_sec=900 systemd.mask=getty@tty1.service"
    " systemd.mask=cloud-config.service systemd.mask=cloud-final.service"
)


def build_package(folder):
    root = folder / "proof"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(CONTROL)
    (root / "usr" / "share" / "proof").mkdir(parents=True)
    (root / "usr" / "share" / "proof" / "text").write_text("installed\n")
    package = folder / "proof.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", root, package], check=True, timeout=60)
    return package


def test_provisioned_debian_is_captured(tmp_path, monkeypatch):
    with debians(ARGUMENTS) as made:
        site = made.site
        monkeypatch.setenv("XDG_CONFIG_HOME", str(site.folder / "config"))
        first = site.fleet("first")
        wait = ("--start", "--wait", "--for", "ssh", "--timeout", "1800")
        site.run("create", first, "-t", "deb", "-n", "1", *wait, timeout=2400)
        (row,) = site.rows(first)
        package = build_package(tmp_path).read_bytes().hex()
        made.ssh(row, f"python3 -c \"open('/root/p.deb','wb').write(bytes.fromhex('{package}'))\"")
        made.ssh(row, "dpkg -i /root/p.deb && sync")
        before = made.ssh(row, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
        capture = ("template", "capture", f"{first}-1", "proof", "--compact", "-f", "json")
        assert "is running" in site.run(*capture, code=6)
        live = ("template", "capture", f"{first}-1", "alive", "--live", "-f", "json")
        assert json.loads(site.run(*live, timeout=1200))["sealed"] is True
        site.run("template", "delete", "alive")
        assert made.ssh(row, "touch /root/thawed && sync && echo done").strip() == "done"
        site.run("stop", first, "--timeout", "600", timeout=900)
        assert json.loads(site.run(*capture, timeout=1200))["sealed"] is True

        five = site.fleet("five")
        site.run("create", five, "-t", "proof", "-n", str(COUNT), *wait, timeout=2400)
        rows = site.rows(five)
        assert len(rows) == COUNT
        for row in rows:
            text = made.ssh(row, "cat /usr/share/proof/text; dpkg-query -W vmcloner-proof")
            assert text.split() == ["installed", "vmcloner-proof", "1.0"]
            own = made.ssh(row, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
            assert set(own.split()[:3]) & set(before.split()) <= {"ssh-ed25519"}
        assert [made.ssh(row, "uname -n").strip() for row in rows] == [r["name"] for r in rows]
        verdicts = json.loads(site.run("audit", five, "-f", "json", timeout=900))
        assert all(row["distinct"] == row["read"] == COUNT for row in verdicts), verdicts

        moved = site.folder / "moved"
        moved.mkdir()
        file = moved / "proof.qcow2"
        export = ("template", "export", "proof", str(file), "--compress", "-f", "json")
        print(site.run(*export, timeout=1200))
        subprocess.run(["qemu-img", "check", file], check=True, timeout=600)
        site.run("delete", five, "--yes", timeout=600)
        site.run("template", "delete", "proof")
        for path in moved.iterdir():
            shutil.move(path, site.folder / "templates")
        again = site.fleet("again")
        site.run("create", again, "-t", "proof", "-n", "1", *wait, timeout=2400)
        (row,) = site.rows(again)
        assert made.ssh(row, "cat /usr/share/proof/text").strip() == "installed"
