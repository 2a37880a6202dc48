"""What another user may not read or write is one line with a way out, never "unexpected"."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, InvalidRequest

NOBODY = 65534
VMCLONER = Path(sys.executable).with_name("vmcloner")
CLOSED = f"another user can't run {VMCLONER}: keep the checkout where all may read"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

SETTINGS = """
[hosts.local]
state = "{folder}/state"
[hosts.local.hypervisor.kvm]
uri = "test:///default"
[hosts.local.storage.files]
path = "{folder}/pool"
"""


@pytest.fixture
def place():
    """A folder that everybody may enter, with settings that everybody may read."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "home").mkdir()
        os.chown(folder / "home", NOBODY, NOBODY)
        settings = folder / "vmcloner.toml"
        settings.write_text(SETTINGS.format(folder=folder))
        settings.chmod(0o644)
        yield folder


def as_nobody(place, *words, cwd=None, config=True, user=NOBODY, **environment):
    home = place / "home"
    given = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
    env = {name: value for name, value in given.items() if value is not None}
    argv = [str(VMCLONER), *(("--config", str(place / "vmcloner.toml")) if config else ()), *words]
    try:
        done = subprocess.run(
            argv, user=user, group=NOBODY, extra_groups=[], env=env, cwd=cwd or home,
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except PermissionError:
        pytest.skip(CLOSED)
    if "can't open file" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip(CLOSED)
    return done.returncode, done.stdout, done.stderr


def refused(answer, *codes):
    code, _out, err = answer
    assert code in codes, err
    assert "unexpected" not in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o744, 0o755])
@pytest.mark.parametrize(
    "words",
    [
        ("create", "web", "-t", "tiny"),
        ("delete", "web", "--yes"),
        ("gc", "--yes"),
        ("boot", "resolve", "web"),
    ],
    ids=lambda words: words[0],
)
def test_a_state_folder_of_roots(place, mode, words):
    state = place / "state"
    for name in ("identity/web-1", "console", "boot/web-1", "templates", "runs"):
        (state / name).mkdir(parents=True)
    (state / "identity/web-1/record.json").write_text("{}")
    for folder in (state, *state.rglob("*")):
        folder.chmod(mode)
    if words[0] == "gc" and mode == 0o755:
        assert as_nobody(place, *words)[0] == 0  # all can be read, and nothing is left
        return
    err = refused(as_nobody(place, *words), BackendError.exit_code, 4)
    assert "state" in err or "no clone" in err or "no fleet" in err


@pytest.mark.parametrize("words", [("list",), ("template", "list"), ("host", "check", "files")])
def test_reads_of_a_state_folder_of_roots(place, words):
    (place / "state" / "identity").mkdir(parents=True)
    (place / "state").chmod(0o700)
    code, _out, err = as_nobody(place, *words)
    assert code in (0, 8, 9, 10), err
    assert "unexpected" not in err
    assert "Traceback" not in err


NAMELESS = 4_000_000
"""A user that the system doesn't know, as containers have: without HOME, it has no home."""


@pytest.mark.parametrize(("user", "home"), [(NOBODY, "private"), (NAMELESS, None)])
def test_a_home_of_others_or_none(place, user, home):
    """What is kept in a home is only for speed."""
    (place / "private").mkdir(mode=0o700)
    homes = {"HOME": home and str(place / home), "XDG_CONFIG_HOME": str(place / "home")}
    code, out, err = as_nobody(place, "template", "list", user=user, **homes)
    assert (code, err) == (0, "")
    assert "tiny" in out


def test_settings_in_a_folder_that_cannot_be_entered(place):
    private = place / "private"
    private.mkdir(mode=0o700)
    (private / "vmcloner.toml").write_text("")
    for answer in (
        as_nobody(place, "--config", str(private / "vmcloner.toml"), "list", config=False),
        as_nobody(place, "list", config=False, VMCLONER_CONFIG=str(private / "vmcloner.toml")),
        as_nobody(place, "list", config=False, XDG_CONFIG_HOME=str(private)),
        as_nobody(place, "list", config=False, cwd=private),
    ):
        assert "Permission denied" in refused(answer, InvalidRequest.exit_code)


def test_templates_in_a_folder_that_cannot_be_read(place):
    private = place / "private"
    (private / "vmcloner" / "templates").mkdir(parents=True)
    private.chmod(0o700)
    answer = as_nobody(place, "template", "show", "tiny", XDG_CONFIG_HOME=str(private))
    assert "Permission denied" in refused(answer, InvalidRequest.exit_code)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_pool_of_roots(place, mode):
    (place / "pool" / "volumes").mkdir(parents=True)
    (place / "state").mkdir()
    os.chown(place / "state", NOBODY, NOBODY)
    for folder in (place / "pool", place / "pool" / "volumes"):
        folder.chmod(mode)
    image = place / "image.raw"
    image.write_bytes(bytes(4096))
    templates = place / "home" / ".config" / "vmcloner" / "templates"
    templates.mkdir(parents=True)
    (templates / "t.toml").write_text(f'[image]\npath = "{image}"\n')
    for path in (templates / "t.toml", templates, *list(templates.parents)[:3]):
        os.chown(path, NOBODY, NOBODY)
    answer = as_nobody(place, "create", "web", "-t", "t")
    assert "pool" in refused(answer, BackendError.exit_code)
