"""`vmcloner plugin new`: each kind's skeleton passes its suite as it is written."""

import os
import subprocess
import sys

import pytest

from tests import child_pytest
from vmcloner_core import skeletons
from vmcloner_core.errors import Conflict, InvalidRequest


def call(*argv, cwd, **env):
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("kind", skeletons.KINDS)
def test_a_skeleton_is_green(tmp_path, kind):
    folder, site = tmp_path / "new", tmp_path / "site"
    written = skeletons.write("blue-moon", kind, folder)
    assert all(path.read_text().endswith("\n") for path in written)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    done = call(*pip, "--target", site, ".", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = call(
        *child_pytest.argv("-q", "-W", "error"),
        cwd=folder,
        PYTHONPATH=str(site),
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    done = call(
        *(sys.executable, "-m", "vmcloner_core.cli", "plugin", "list", "-f", "csv"),
        *("-c", "name", "-c", "distribution", "-c", "version", "-c", "state"),
        cwd=tmp_path,
        PYTHONPATH=str(site),
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert '"blue-moon","vmcloner-blue-moon","0.1.0","ok"' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "Zfs", "-zfs", "zfs-", "z/../fs", "z fs", "ü", "z" * 41])
def test_names_that_are_refused(tmp_path, name):
    with pytest.raises(InvalidRequest, match="not a name"):
        skeletons.write(name, "storage", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(Conflict):
        skeletons.write("zfs", "storage", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command(run, tmp_path):
    code, out, err = run("plugin", "new", "zfs", "--kind", "image")
    assert code == 0
    assert out.split() == [
        f"vmcloner-zfs/{file}"
        for file in ("pyproject.toml", "README.md", "vmcloner_zfs.py", "tests/test_vmcloner_zfs.py")
    ]
    assert "pip install" in err
    assert run("plugin", "new", "zfs", "--kind", "image")[0] == 5
    assert run("plugin", "new", "ZFS", "--kind", "image")[0] == 3
    assert run("plugin", "new", "zfs", "--kind", "disk")[0] == 2
