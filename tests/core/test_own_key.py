"""vmcloner's own key: a user without one in ~/.ssh can log in to clones all the same."""

import stat
from pathlib import Path

import pytest

from vmcloner_core import own_key, ssh, ssh_access
from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.model import ImageSource, Template
from vmcloner_core.testing.samples import make_labels

SEEDED = """
hypervisors = ["reference"]
boot = "reference"
memory = "256MiB"
[image]
path = "image.raw"
[identity]
provider = "cloud-init"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    return tmp_path


def access(keys):
    template = Template(name="t1", image=ImageSource(path=Path("image.raw")))
    return ssh_access.access(template, make_labels(), "192.0.2.7", own_key.key_file(), keys)


def test_it_is_made_once_for_its_owner_alone():
    assert own_key.public_key() is None
    made = own_key.made_key()
    assert made == own_key.made_key() == own_key.public_key()
    assert stat.S_IMODE(own_key.key_file().stat().st_mode) == 0o600
    assert list(own_key.key_file().parent.iterdir()) == [own_key.key_file()]


def test_a_damaged_key_is_named():
    own_key.made_key()
    own_key.key_file().write_text("nonsense")
    with pytest.raises(BackendError, match="id_ed25519"):
        own_key.made_key()


def test_a_key_that_others_could_have_written_is_not_used():
    own_key.made_key()
    own_key.key_file().chmod(0o666)
    with pytest.raises(InvalidRequest, match="id_ed25519"):
        own_key.public_key()


def test_under_sudo_it_is_roots_own(monkeypatch, tmp_path):
    monkeypatch.setenv("SUDO_USER", "somebody")
    monkeypatch.setattr("vmcloner_core.own_key.os.geteuid", lambda: 0)
    assert tmp_path not in own_key.key_file().parents


def test_it_is_tried_before_the_users_others_where_it_is_authorized(home):
    (home / ".ssh").mkdir()
    for name in ("id_rsa", "id_rsa.pub", "id_gone.pub"):
        (home / ".ssh" / name).touch()
    assert access([own_key.made_key()]).keys == (own_key.key_file(), home / ".ssh/id_rsa")
    argv = ssh.command(access([own_key.made_key()]))
    assert f'IdentityFile="{own_key.key_file()}"' in argv
    assert "IdentitiesOnly=yes" not in argv
    assert f'    IdentityFile "{home}/.ssh/id_rsa"' in ssh.config([access([own_key.made_key()])])


def test_clones_of_before_are_reached_as_before():
    own_key.made_key()
    assert access(["ssh-ed25519 AAAA another"]).keys == ()
    assert access([]).keys == ()


def test_a_create_makes_it_and_authorizes_it(lab, run):
    lab.template("seeded", SEEDED)
    assert run("create", "web", "-t", "seeded", "--dry-run")[0] == 0
    assert own_key.public_key() is None
    assert run("create", "web", "-t", "seeded")[0] == 0
    identity = lab.engine._host.records.find("web-1").identity
    assert identity.authorized_keys == (own_key.public_key(),)


def test_a_template_that_lets_nobody_in_stays_so(lab, run):
    lab.template("closed", SEEDED + "authorized_keys = []\n")
    assert run("create", "web", "-t", "closed")[0] == 0
    assert lab.engine._host.records.find("web-1").identity.authorized_keys == ()
    assert own_key.public_key() is None
