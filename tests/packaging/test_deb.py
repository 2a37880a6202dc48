"""The Debian package. What builds it and installs it in chroots is slow: make test-packages."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from contrib.lab.errors import LabError
from contrib.packaging import chroots, deb, sources, vendored
from vmcloner_core.process import LocalRunner
from vmcloner_core.schedule import EVERY, LABEL, Places, Schedule
from vmcloner_libvirt.setting_up import PACKAGES

DEBIAN = sources.TOP / "contrib/packaging/debian"
STATE = "/var/lib/vmcloner"


@pytest.mark.parametrize(
    ("python", "debian"),
    [
        ("1.0.0", "1.0.0+deb13"),
        ("1.0.0.dev0", "1.0.0~dev0+deb13"),
        ("1.0.0rc2", "1.0.0~rc2+deb13"),
        ("1.2.0b1", "1.2.0~b1+deb13"),
    ],
)
def test_versions_sort_as_python_sorts_them(python, debian):
    assert sources.debian_version(python, "deb13") == debian


def test_the_build_sees_the_distributions_package_of_each_dependency():
    """One that isn't there would be taken along although the distribution has it."""
    project = tomllib.loads((sources.TOP / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in project["dependencies"]}
    named = {"attrs": "attr", "cattrs": "cattr", "pyyaml": "yaml"}
    wanted = {f"python3-{named.get(name, name)}" for name in names - {"backports.zstd"}}
    assert wanted <= set(deb._build_depends())


def test_its_timer_is_the_one_that_host_prepare_gc_makes(tmp_path):
    """But for the label, and where its manual is."""
    schedule = Schedule(LocalRunner(), Places(units=tmp_path))
    made = schedule._units(("/usr/bin/vmcloner", "--quiet", "gc", "--expired", "--yes"), EVERY)
    for path, text in made.items():
        shipped = (DEBIAN / f"vmcloner.{path.name}").read_text()
        assert shipped.replace("Documentation=man:vmcloner-gc(1)\n", "") == text.removeprefix(LABEL)


class Installed:
    """A distribution as importlib.metadata has it."""

    def __init__(self, folder, *requires):
        self.folder, self.requires = folder, requires

    def locate_file(self, _):
        return self.folder


def test_what_lies_in_the_environment_is_followed(monkeypatch):
    """The distribution's packages aren't: they have dependencies of their own."""
    own = Path("/usr/lib/vmcloner/lib/python3.13/site-packages")
    found = {
        "vmcloner": Installed(
            own, "attrs>=23", "cliff>=4", "mitogen; extra == 'cluster'", "x; extra == 'dask'"
        ),
        "cliff": Installed(own, "cmd2", "vmcloner"),  # a circle ends
        "cmd2": Installed(vendored.SYSTEM, "never-asked"),
        "attrs": Installed(vendored.SYSTEM),
        "mitogen": Installed(vendored.SYSTEM),
    }
    monkeypatch.setattr(metadata, "distribution", found.__getitem__)
    used = vendored.used(Requirement("vmcloner[cluster]"))
    assert {str(requirement) for requirement, _ in used} == {
        *("attrs>=23", "cmd2", 'mitogen; extra == "cluster"')
    }


def test_what_a_killed_use_of_a_chroot_left_is_removed(tmp_path, monkeypatch):
    """And not what another process uses."""
    (tmp_path / "content/usr/sbin").mkdir(parents=True)
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", tmp_path / "content", "-cf", archive, "usr"], check=True)
    monkeypatch.setenv("VMCLONER_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(chroots, "_archive", lambda *_: archive)
    left = tmp_path / "cache/chroot-left/root"
    left.mkdir(parents=True)
    with chroots.unpacked(chroots.RELEASES["trixie"]) as first:
        assert not left.exists()
        with chroots.unpacked(chroots.RELEASES["trixie"]) as second:
            assert first.folder.exists()
            assert second.files() == {
                **first.files(),
                "/usr/sbin/policy-rc.d": f"100755 {os.geteuid()} {os.getegid()} 19",
            }
    assert not list((tmp_path / "cache").glob("chroot-*"))


# --- built and installed --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return sources.build(tmp_path_factory.mktemp("wheel"))[1]


@pytest.fixture(scope="module", params=deb.DEBIAN)
def root(request, wheel, tmp_path_factory):
    """A chroot of a release with the package's file, and with what the package depends on."""
    release = chroots.RELEASES[request.param]
    package = deb.build(release, tmp_path_factory.mktemp(release.name), wheel)
    with chroots.unpacked(release) as root:
        shutil.copy(package, root.folder / "vmcloner.deb")
        depends = root.run("dpkg-deb", "--field", "/vmcloner.deb", "Depends").strip()
        root.run("apt-get", "-q", "update")
        root.run("apt-get", "-q", "satisfy", "-y", "--no-install-recommends", depends)
        yield root


@pytest.fixture
def installed(root):
    """The package is installed for a test, and purged after it; nothing of it stays."""
    before = root.files()
    root.run("dpkg", "--install", "/vmcloner.deb")
    yield root
    root.run("dpkg", "--purge", "vmcloner")
    after = root.files()
    passing = ("/var/lib/dpkg/", "/var/log/", "/var/cache/", "/root/.cache")
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(passing)} == set()


SLOW = [pytest.mark.slow, pytest.mark.timeout(1500)]


class TestInstalled:
    pytestmark = SLOW

    def test_says_its_version(self, installed):
        version = f"vmcloner {sources.version()}\n"
        assert installed.run("vmcloner", "--version") == version

    def test_all_it_brings_can_be_loaded(self, installed):
        rows = json.loads(installed.run("vmcloner", "plugin", "list", "-f", "json"))
        assert [row for row in rows if row["error"] or row["state"] != "ok"] == []
        assert {"files", "lvm-thin", "kvm", "xen"} <= {row["name"] for row in rows}

    def test_has_the_templates(self, installed):
        rows = json.loads(installed.run("vmcloner", "template", "list", "-f", "json"))
        files = (sources.TOP / "templates").glob("*.toml")
        assert {row["name"] for row in rows} == {file.stem for file in files}

    def test_the_host_is_checked(self, installed):
        """There is no libvirtd in the chroot; libvirt's binding is there."""
        script = "vmcloner host check -f json; [ $? = 8 ]"
        rows = json.loads(installed.run("sh", "-c", script))
        states = {(row["backend"], row["check"]): row["status"] for row in rows}
        assert states["files", "qemu-img"] == "ok"
        assert states["kvm", "libvirt-python"] == "ok"
        assert states["kvm", "daemon"] == "failed"

    def test_completes(self, installed):
        script = """
            source /usr/share/bash-completion/completions/vmcloner
            COMP_WORDS=(vmcloner templ) COMP_CWORD=1
            _vmcloner
            echo "${COMPREPLY[@]}"
        """
        assert installed.run("bash", "-c", script).split() == ["template"]
        for file in ("zsh/vendor-completions/_vmcloner", "fish/vendor_completions.d/vmcloner.fish"):
            assert (installed.folder / "usr/share" / file).stat().st_size > 100

    def test_has_manual_pages(self, installed):
        man = installed.folder / "usr/share/man"
        names = {file.name for file in man.glob("man*/*")}
        assert {"vmcloner.1.gz", "vmcloner-create.1.gz", "vmcloner.toml.5.gz"} <= names

    def test_a_schedule_that_it_made_goes_with_it(self, installed):
        """And so does the state folder, if no clone was made."""
        installed.run("mkdir", "-p", "/etc/cron.d")
        installed.run("vmcloner", "host", "prepare", "gc")
        assert (installed.folder / "etc/cron.d/vmcloner-gc").exists()
        assert (installed.folder / STATE.lstrip("/")).exists()
        installed.run("dpkg", "--purge", "vmcloner")
        assert not (installed.folder / "etc/cron.d/vmcloner-gc").exists()
        assert not (installed.folder / STATE.lstrip("/")).exists()
        installed.run("rmdir", "--ignore-fail-on-non-empty", "/etc/cron.d")

    def test_clones_stay(self, installed):
        """They are the user's, and may be running."""
        disk = f"{STATE}/pool/web-1.qcow2"
        installed.run("sh", "-c", f"mkdir -p {STATE}/pool && echo data > {disk}")
        installed.run("dpkg", "--purge", "vmcloner")
        assert (installed.folder / disk.lstrip("/")).read_text() == "data\n"
        installed.run("rm", "-r", STATE)

    def test_an_upgrade_and_a_second_install_change_nothing(self, installed):
        before = set(installed.files())
        installed.run("dpkg", "--install", "/vmcloner.deb")
        assert set(installed.files()) - before == set()

    def test_runs_for_a_user_who_is_not_root(self, installed):
        out = installed.run(
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "env",
            "HOME=/tmp",
            "vmcloner",
            "--version",
        )
        assert out.startswith("vmcloner ")


SET_UP = """
set -e
mount -t sysfs sys /sys
mount -t tmpfs run /run
ip link set lo up
vmcloner host setup --yes -f json
vmcloner host setup --yes -f json >/tmp/again
vmcloner host check -f json >/tmp/checked
virsh net-list --name >/tmp/networks
"""


class TestBareMachine:
    pytestmark = SLOW

    def test_host_setup_makes_it_ready(self, root):
        """In a network namespace of its own; so its packages are downloaded before."""
        root.run("dpkg", "--install", "/vmcloner.deb")
        root.run("apt-get", "-q", "install", "-y", "--download-only", *PACKAGES)
        root.run("apt-get", "-q", "install", "-y", "iproute2")
        first = json.loads(root.run("unshare", "--net", "bash", "-c", SET_UP))
        assert {row["step"]: row["status"] for row in first}["libvirtd"] == "done"
        tmp = root.folder / "tmp"
        again = json.loads((tmp / "again").read_text())
        assert {row["status"] for row in again} == {"already done"}
        checked = json.loads((tmp / "checked").read_text())
        assert [row for row in checked if row["status"] == "failed"] == []
        assert "vmcloner" in (tmp / "networks").read_text().split()


@pytest.mark.slow
def test_a_command_that_fails_in_a_chroot_says_why():
    with chroots.unpacked(chroots.RELEASES["trixie"]) as root:
        with pytest.raises(LabError, match="No such file"):
            root.run("ls", "/nowhere")
        assert root.run("id", "-u").strip() == "0"
    assert not root.folder.exists()
