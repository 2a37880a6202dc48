"""Settings and templates that another user could have written are refused."""

import os
import struct

import pytest

from vmcloner_core.catalog import Catalog
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.settings import Settings
from vmcloner_core.trusted_files import MAX_FILE, read_file

OTHER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: needs root")


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir(mode=0o755)
    path = folder / "vmcloner.toml"
    path.write_text('[defaults]\nstorage = "mine"\n')
    path.chmod(0o644)
    return path


def refused(path):
    with pytest.raises(InvalidRequest) as caught:
        read_file(path, trusted=True)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ones_own_are_read(file):
    assert b"mine" in read_file(file, trusted=True)


@as_root
def test_another_users_file(file):
    os.chown(file, OTHER, -1)
    assert f"belongs to user {OTHER}" in refused(file)
    assert b"mine" in read_file(file, trusted=False)


@as_root
def test_a_file_in_another_users_folder(file):
    os.chown(file.parent, OTHER, -1)
    assert f"{file.parent} belongs to user {OTHER}" in refused(file)


@as_root
def test_the_user_who_called_sudo_is_believed(file, monkeypatch):
    os.chown(file, OTHER, -1)
    monkeypatch.setenv("SUDO_UID", str(OTHER))
    assert b"mine" in read_file(file, trusted=True)


@pytest.mark.parametrize("mode", [0o646, 0o666])
def test_a_file_that_all_can_write(file, mode):
    file.chmod(mode)
    assert "can be written by other users (if you trust it: chmod go-w" in refused(file)


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o1777])
def test_a_folder_that_all_can_write(file, mode):
    file.parent.chmod(mode)
    refused(file)


def test_a_folder_above_that_all_can_write(file):
    file.parent.parent.chmod(0o757)
    refused(file)
    file.parent.parent.chmod(0o1777)  # as /tmp is: there nobody can replace what is ours
    assert b"mine" in read_file(file, trusted=True)


@as_root
def test_a_group_of_others_that_can_write(file):
    os.chown(file, -1, OTHER)
    file.chmod(0o664)
    assert "can be written by other users" in refused(file)


def test_a_group_that_is_ones_own(file):
    os.chown(file, -1, os.getegid())
    file.chmod(0o664)
    if os.geteuid() == 0:  # root's group has no other members
        assert b"mine" in read_file(file, trusted=True)


def test_a_link_from_a_folder_of_others(file, tmp_path):
    """Whoever could set the link chose what is read."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "vmcloner.toml").symlink_to(file)
    refused(shared / "vmcloner.toml")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_hangs_nobody(tmp_path, make):
    make(tmp_path / "vmcloner.toml")
    with pytest.raises(InvalidRequest, match=r"not a regular file|Is a directory"):
        Settings.load(tmp_path / "vmcloner.toml")


def test_an_endless_file(tmp_path):
    (tmp_path / "vmcloner.toml").write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(InvalidRequest, match="larger than"):
        Settings.load(tmp_path / "vmcloner.toml")


def test_settings_of_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    assert Settings.load().defaults.storage == "mine"
    file.chmod(0o666)
    with pytest.raises(InvalidRequest, match=r"vmcloner\.toml: not used, since it"):
        Settings.load()


def test_templates_and_what_they_extend(tmp_path):
    mine, shared = tmp_path / "mine", tmp_path / "shared"
    for folder in (mine, shared):
        folder.mkdir()
    (mine / "a.toml").write_text("extends = 'b'")
    (shared / "b.toml").write_text("[image]\nbuilder = 'tiny'\n")
    catalog = Catalog(tmp_path / "built", [mine, shared])
    assert catalog.template("a").image.builder == "tiny"
    (shared / "b.toml").chmod(0o666)
    for name in "ab":
        with pytest.raises(InvalidRequest, match=r"b\.toml: not used"):
            catalog.template(name)
    assert [info.error is not None for info in catalog.infos()] == [True, True]


def test_a_templates_own_xml(tmp_path):
    (tmp_path / "d.xml").write_text("<domain/>")
    (tmp_path / "a.toml").write_text("[image]\nbuilder = 'tiny'\n[domain]\nxml = 'd.xml'\n")
    catalog = Catalog(tmp_path / "built", [tmp_path])
    assert catalog.template("a").domain.xml == tmp_path / "d.xml"
    (tmp_path / "d.xml").chmod(0o666)
    with pytest.raises(InvalidRequest, match=r"d\.xml: not used"):
        catalog.template("a")


@as_root
def test_an_acl_that_lets_others_write(file):
    # acl(5) as the kernel stores it: a version, then (tag, permissions, id) for owner, user,
    # group, mask and others. The mode's group bits show the mask.
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 6, 65534), (4, 4, none), (16, 6, none), (32, 4, none)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(file, "system.posix_acl_access", acl)
    assert "can be written by other users" in refused(file)
