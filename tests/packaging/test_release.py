"""Releases: what is refused. The files of one are built by make test-packages."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from contrib.packaging import sources
from contrib.release.release import Refused, check, main, section

AUTHOR = {
    "GIT_AUTHOR_NAME": "T",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "T",
    "GIT_COMMITTER_EMAIL": "t@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}
CHANGELOG = (
    "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-01-31\n\n- New: x.\n\n## 1.1.0\n\n- Old.\n"
)


class Checkout:
    """A repository with what a release looks at."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.git("init", "--quiet")
        (folder / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        (folder / ".gitignore").write_text("/dist/\n")
        self.commit()

    def git(self, *words: str) -> None:
        env = {**os.environ, **AUTHOR}
        subprocess.run(["git", *words], cwd=self.folder, check=True, env=env, timeout=60)

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", "x")


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_tagged_commit(checkout):
    checkout.git("tag", "-a", "-m", "x", "v1.2.0")
    checkout.git("tag", "reviewed")  # of another kind
    (checkout.folder / "dist").mkdir()
    (checkout.folder / "dist/old").touch()
    release = check(checkout.folder)
    assert (release.version, release.tag, release.notes) == ("1.2.0", "v1.2.0", "- New: x.\n")


@pytest.mark.parametrize("change", ["changed", "new"])
def test_a_dirty_tree(checkout, change):
    checkout.git("tag", "v1.2.0")
    name = {"changed": "CHANGELOG.md", "new": "left-over"}[change]
    (checkout.folder / name).write_text("x")
    with pytest.raises(Refused, match=f"not all is committed: {name}; "):
        check(checkout.folder)


def test_what_is_staged_is_not_committed(checkout):
    checkout.git("tag", "v1.2.0")
    (checkout.folder / "CHANGELOG.md").write_text("x")
    checkout.git("add", ".")
    with pytest.raises(Refused, match="not all is committed"):
        check(checkout.folder)


@pytest.mark.parametrize("tag", ["", "1.2.0", "v1.2.0-hotfix", "vanilla"])
def test_a_commit_without_a_tag_of_a_version(checkout, tag):
    if tag:
        checkout.git("tag", tag)
    with pytest.raises(Refused, match="the commit has no tag"):
        check(checkout.folder)


def test_a_tag_of_an_earlier_commit(checkout):
    checkout.git("tag", "v1.2.0")
    (checkout.folder / "later").touch()
    checkout.commit()
    with pytest.raises(Refused, match="the commit has no tag"):
        check(checkout.folder)


def test_two_tags(checkout):
    checkout.git("tag", "v1.2.0")
    checkout.git("tag", "v1.3.0")
    with pytest.raises(Refused, match=r"has the tags v1\.2\.0, v1\.3\.0"):
        check(checkout.folder)


def test_a_tag_of_another_version(checkout):
    checkout.git("tag", "v1.3.0")
    with pytest.raises(Refused, match=r"the tag is v1\.3\.0, and the version .* 1\.2\.0"):
        check(checkout.folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("# Changelog\n\n## Unreleased\n\n- x\n", "has no section"),
        ("## 1.2.0\n\n\n## 1.1.0\n\n- x\n", "is empty"),
        ("## 1.2.0\n", "is empty"),
        ("## 1.2.01\n\n- x\n", "has no section"),
        ("## 1x2x0\n\n- x\n", "has no section"),
        ("### 1.2.0\n\n- x\n", "has no section"),
    ],
)
def test_a_changelog_without_the_section(checkout, text, reason):
    with pytest.raises(Refused, match=reason):
        section(text, "1.2.0")
    (checkout.folder / "CHANGELOG.md").write_text(text)
    checkout.commit()
    checkout.git("tag", "v1.2.0")
    with pytest.raises(Refused, match=reason):
        check(checkout.folder)


def test_a_section_keeps_its_own_headings():
    text = "## 1.2.0\n\n### Added\n- x\n\n### Fixed\n- y\n\n## 1.1.0\n- z\n"
    assert section(text, "1.2.0") == "### Added\n- x\n\n### Fixed\n- y\n"


def test_no_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "TOP", tmp_path)
    assert main(["--dry-run"]) == 1
    assert "not a git repository" in capsys.readouterr().err


def test_a_dry_run_shows_the_section_and_writes_nothing(checkout, monkeypatch, capsys):
    checkout.git("tag", "v1.2.0")
    monkeypatch.setattr(sources, "TOP", checkout.folder)
    before = sorted(checkout.folder.rglob("*"))
    assert main(["--dry-run"]) == 0
    assert capsys.readouterr().out == "would release 1.2.0:\n\n- New: x.\n"
    assert sorted(checkout.folder.rglob("*")) == before


def test_a_refusal_is_one_line(checkout, monkeypatch, capsys):
    monkeypatch.setattr(sources, "TOP", checkout.folder)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_nothing_is_overwritten(checkout, monkeypatch, capsys):
    checkout.git("tag", "v1.2.0")
    monkeypatch.setattr(sources, "TOP", checkout.folder)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (checkout.folder / "dist/1.2.0").mkdir(parents=True)
    (checkout.folder / "dist/1.2.0/SHA256SUMS").touch()
    assert main([]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_release(tmp_path):
    """Of this checkout, as if its version were released now."""
    top = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(sources.TOP, top, ignore=left_out)
    copy = object.__new__(Checkout)
    copy.folder = top
    version = sources.version().partition(".dev")[0]
    for name, old, new in (
        ("pyproject.toml", sources.version(), version),
        ("CHANGELOG.md", "## Unreleased", f"## {version}"),
    ):
        (top / name).write_text((top / name).read_text().replace(old, new, 1))
    (top / ".gitignore").write_text("__pycache__/\n/build/\n/dist/\n")
    copy.git("init", "--quiet")
    copy.commit()
    copy.git("tag", f"v{version}")
    done = subprocess.run(
        [sys.executable, "-m", "contrib.release.release"],
        check=False,
        cwd=top,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    out = top / "dist" / version
    names = {
        *("SHA256SUMS", f"vmcloner-{version}.md", f"vmcloner-{version}.tar.gz"),
        f"vmcloner-{version}-py3-none-any.whl",
        *(f"vmcloner_{version}+{suffix}_amd64.deb" for suffix in ("deb12", "deb13")),
    }
    assert {file.name for file in out.iterdir()} == names
    sums = dict(line.split()[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in names - {"SHA256SUMS"}
    }
    with tarfile.open(out / f"vmcloner-{version}.tar.gz") as archive:
        assert f"vmcloner-{version}/docs/index.md" in archive.getnames()
