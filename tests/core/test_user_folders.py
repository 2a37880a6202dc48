"""The folders of the user who runs the process."""

from pathlib import Path

import pytest

from vmcloner_core import user_folders
from vmcloner_core.errors import InvalidRequest

FOLDERS = [user_folders.config, user_folders.cache, user_folders.state]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_a_user(monkeypatch, folder):
    for kind in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", f"/of/{kind.lower()}")
    assert folder() == Path("/of", folder.__name__, "vmcloner")


@pytest.mark.parametrize("folder", FOLDERS)
def test_none_of_a_user_without_a_home(monkeypatch, folder):
    """Older versions of platformdirs return a path that begins with a tilde."""
    name = f"user_{folder.__name__}_path"
    monkeypatch.setattr(f"platformdirs.{name}", lambda app: Path("~/.config", app))
    with pytest.raises(InvalidRequest, match="no home folder"):
        folder()


def test_keys_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folders.public_keys() == ()
    (tmp_path / ".ssh").mkdir()
    for name in ("id_b.pub", "id_a.pub", "id_a", "known_hosts"):
        (tmp_path / ".ssh" / name).touch()
    assert [file.name for file in user_folders.public_keys()] == ["id_a.pub", "id_b.pub"]
    assert user_folders.expanded("~/a") == tmp_path / "a"
    assert user_folders.home() == tmp_path
