"""The source distribution, and the wheel that is built from it.

They hold all that the checkout has, and work where libvirt's binding is missing.
"""

import configparser
import json
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.packaging.building import ROOT, run

PACKAGES = {
    "vmcloner_core": ROOT / "vmcloner_core",
    "vmcloner_core/templates": ROOT / "templates",
    **{path.name: path for path in (ROOT / "plugins").iterdir() if path.is_dir()},
}


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_an_index_accepts_both(built):
    """The metadata is valid, and README.md can be shown."""
    files = sorted(built.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_source_has_documents_and_tests(built):
    """Whoever packages it further builds the pages and runs the tests."""
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CHANGELOG.md",
        "LICENSE",
        "docs/events.schema.json",
        "docs/index.md",
        "contrib/docs/build.py",
        "contrib/setup/packages.txt",
        "tests/conftest.py",
        "tests/packaging/test_wheel.py",
    } <= names
    assert not [name for name in names if name.endswith(".pyc") or "/." in name]


def test_every_package_is_there_with_its_files(names):
    """Whatever lies in the checkout beside the sources is data that somebody reads."""
    missing = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } - names
    assert missing == set()


@pytest.mark.parametrize(
    "name",
    [
        "vmcloner_core/py.typed",
        "vmcloner_boot/py.typed",
        "vmcloner_dd/py.typed",
        "vmcloner_files/py.typed",
        "vmcloner_libvirt/py.typed",
        "vmcloner_tiny/py.typed",
        "vmcloner_tiny/init",
        "vmcloner_libvirt/domain.xml.j2",
        "vmcloner_core/reports/report.html.j2",
        "vmcloner_core/templates/tiny.toml",
        "vmcloner_core/templates/debian-12.toml",
        "vmcloner_core/templates/ubuntu-24.04.toml",
        "vmcloner_core/templates/alpine.toml",
        "vmcloner_core/templates/cloud-image.toml",
        "vmcloner_core/templates/freebsd.user-data.j2",
    ],
)
def test_files_that_are_promised(names, name):
    assert name in names


def test_the_licence_is_there(names):
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]


def test_nothing_else_is_installed(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        package for package in PACKAGES if "/" not in package
    }


def test_the_plug_board_is_whole(wheel, names):
    """Each entry point of setup.cfg is in the wheel, and what it names is too."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    expected = {
        (group, *(word.strip() for word in line.split("=", 1)))
        for group, lines in config["options.entry_points"].items()
        for line in lines.strip().splitlines()
    }
    with zipfile.ZipFile(wheel) as archive:
        (listing,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        found = configparser.ConfigParser()
        found.optionxform = str
        found.read_string(archive.read(listing).decode())
    assert {(g, n, v) for g in found.sections() for n, v in found[g].items()} == expected
    assert {group for group, *_ in expected} == {
        "cliff.formatter.show",
        "console_scripts",
        "pytest11",
        "vmcloner.boot",
        "vmcloner.carrier",
        "vmcloner.cli",
        "vmcloner.hypervisor",
        "vmcloner.identity",
        "vmcloner.image",
        "vmcloner.storage",
    }
    for _, name, value in expected:
        module = value.partition(":")[0].replace(".", "/")
        assert names & {f"{module}.py", f"{module}/__init__.py"}, f"{name} = {value}"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel and its dependencies, without the extra [libvirt]."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    done = run(folder / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def vmcloner(installed, tmp_path, monkeypatch):
    """Run the installed command, with nothing of this checkout or of the user around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "VMCLONER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "vmcloner.toml").write_text(f'[hosts.local]\nstate = "{tmp_path}/state"\n')
    return lambda *words: run(installed / "bin/vmcloner", *words, timeout=60)


def test_libvirt_is_not_a_dependency(installed):
    assert run(installed / "bin/python", "-c", "import libvirt").returncode != 0


def test_says_its_version(vmcloner):
    done = vmcloner("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["vmcloner", metadata.version("vmcloner")]


def test_lists_its_plugins(vmcloner):
    done = vmcloner("plugin", "list", "-f", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {"files", "kvm", "disk", "kernel", "tiny"} <= {row["name"] for row in rows}
    assert [row for row in rows if row["error"] or row["state"] != "ok"] == []
    assert {row["distribution"] for row in rows} == {"vmcloner"}


def test_lists_the_templates_that_it_ships(vmcloner):
    done = vmcloner("template", "list", "-f", "json")
    assert done.returncode == 0, done.stderr
    names = {row["name"] for row in json.loads(done.stdout)}
    assert names == {file.stem for file in (ROOT / "templates").glob("*.toml")}
    assert {"tiny", "netboot", "debian-12", "ubuntu-24.04", "alpine"} <= names


def test_names_what_kvm_lacks(vmcloner):
    done = vmcloner("create", "web", "-t", "tiny", "-e", "kvm")
    assert done.returncode == 8, done.stdout + done.stderr
    assert "libvirt-python is not installed" in done.stderr
    assert "pip install 'vmcloner[libvirt]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
