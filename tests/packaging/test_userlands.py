"""The releases that are tested, and what is said of them."""

import contextlib
import re
import tomllib

import pytest

from contrib.lab.errors import LabError, TimeUp
from contrib.packaging import sources, userlands
from contrib.packaging.chroots import RELEASES

VERSION = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def test_the_classifiers_are_the_pythons_that_are_tested():
    project = tomllib.loads((sources.TOP / "pyproject.toml").read_text())["project"]
    said = [match[1] for line in project["classifiers"] if (match := VERSION.fullmatch(line))]
    assert said == sorted(said)
    assert set(said) == {release.python for release in RELEASES.values()}
    assert f">={said[0]}" == project["requires-python"]


def test_the_documentation_names_each_release():
    page = (sources.TOP / "docs/install.md").read_text()
    rows = re.findall(r"^\| (?:Debian|Ubuntu)[^|]*\| (3\.\d+) \|.*\| `(make [^`]*)`", page, re.M)
    tested = {
        release.python: f"make test-userlands ARGS={name}" for name, release in RELEASES.items()
    }
    assert dict(rows) == {**tested, "3.11": "make test"}  # the machine's own
    assert {*userlands.DEFAULT} < RELEASES.keys()


class Chroot:
    """A chroot in which each part of the tests writes a log, and ends as ``ends`` says."""

    def __init__(self, folder, ends):
        self.folder, self.ends, self.envs = folder, list(ends), []
        (folder / "srv").mkdir(parents=True)

    def install(self, *_packages):
        pass

    def run(self, *_argv, timeout, env):
        self.envs.append(env)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        (self.folder / "srv/log").write_text(f"...\n===== {end} =====\n")


@pytest.fixture
def tested(tmp_path, monkeypatch, capsys):
    """Return a function that tests Ubuntu 24.04: the chroot, the exit code, output, errors."""

    def tested(*ends, argv=()):
        root = Chroot(tmp_path / "root", ends)
        monkeypatch.setattr(sources, "TOP", tmp_path / "source")
        (tmp_path / "source").mkdir()
        monkeypatch.setattr(userlands, "LOGS", tmp_path / "logs")
        monkeypatch.setattr(userlands, "unpacked", lambda _release: contextlib.nullcontext(root))
        code = userlands.main(["noble", *argv])
        return root, code, *capsys.readouterr()

    return tested


def test_a_release_that_passes(tested):
    root, code, out, _ = tested("9 passed", "3 passed")
    assert code == 0
    assert out.splitlines() == [
        "noble, Python 3.12, unit tests: 9 passed",
        "noble, Python 3.12, libvirt tests: 3 passed",
    ]
    assert [env["CI"] for env in root.envs] == ["true", "true"]  # no tool may be missing


def test_no_log_is_that_of_an_earlier_run(tested, tmp_path):
    """A part that can't even begin writes none."""
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs/noble-libvirt.log"
    log.write_text("===== 3 passed =====\n")
    assert tested("9 passed", LabError("unshare failed"))[1] == 1
    assert not log.exists()


def test_the_driver_is_tested_also_if_a_unit_test_fails(tested):
    _, code, out, err = tested(LabError("sh failed"), "3 passed")
    assert code == 1
    assert "userlands: noble, Python 3.12, unit tests failed; see " in err
    assert out == "noble, Python 3.12, libvirt tests: 3 passed\n"


def test_tests_that_take_too_long_are_no_failed_tests(tested):
    _, code, _, err = tested("9 passed", TimeUp("sh: no end"))
    assert code == 1
    assert "userlands: noble, Python 3.12, libvirt tests: no end within 180 minutes; see " in err


def test_a_part_of_the_unit_tests(tested):
    root, code, out, _ = tested("1 passed", argv=["--pytest=tests/core"])
    assert (code, out) == (0, "noble, Python 3.12, unit tests: 1 passed\n")
    assert len(root.envs) == 1
