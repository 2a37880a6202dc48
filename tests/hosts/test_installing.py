"""What is sent to another machine, to install vmcloner there."""

from importlib import metadata

import pytest

from vmcloner_core.errors import BackendError
from vmcloner_core.hosts import installing


def test_a_package_of_the_operating_system_is_not_sent(tmp_path, monkeypatch):
    """It has no list of its files; half of it would arrive, and the reason be found there."""
    folder = tmp_path / "attrs-23.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: attrs\nVersion: 23.2\n")
    monkeypatch.setattr(installing, "needed", lambda: [metadata.Distribution.at(folder)])
    with pytest.raises(BackendError, match="attrs is a package of the operating system here"):
        installing.packed()


def test_what_pip_installed_is_sent(tmp_path, monkeypatch):
    folder = tmp_path / "attrs-23.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: attrs\nVersion: 23.2\n")
    (folder / "RECORD").write_text("attr.py,,\nattrs-23.2.dist-info/METADATA,,\n")
    (tmp_path / "attr.py").write_text("x = 1\n")
    monkeypatch.setattr(installing, "needed", lambda: [metadata.Distribution.at(folder)])
    assert installing.packed()
