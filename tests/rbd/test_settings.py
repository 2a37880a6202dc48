"""Settings of a pool in Ceph, and what is said before a cluster is asked."""

from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.testing.samples import make_context
from vmcloner_rbd.driver import RbdDriver
from vmcloner_rbd.settings import RbdSettings


@pytest.mark.parametrize(
    "values",
    [
        {"pool": "a/b"},
        {"pool": "-x"},
        {"namespace": "a b"},
        {"user": "client.admin"},
        {"conf": Path("ceph.conf")},
        {"keyring": Path("key")},
        {"monitors": ("mon:port",)},
        {"monitors": ("a,b",)},
        {"secret": "vmcloner"},
    ],
)
def test_values_that_are_refused(values):
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        RbdSettings(**values)


def test_where_a_cluster_is_by_default():
    settings = RbdSettings()
    assert str(settings.conf_file) == "/etc/ceph/ceph.conf"
    assert str(settings.key_file) == "/etc/ceph/ceph.client.admin.keyring"
    assert RbdSettings(monitors=("[2001:db8::1]:6789", "mon1")).conf_file is None


def test_a_key_that_everybody_can_read(tmp_path):
    key = tmp_path / "key"
    key.write_text("AQ==")
    key.chmod(0o644)
    driver = RbdDriver(make_context(tmp_path), RbdSettings(monitors=("mon1",), keyring=key))
    with pytest.raises(InvalidRequest, match="everybody can read this key"):
        driver.volumes()
    key.unlink()
    with pytest.raises(BackendError, match="can't read the key file"):
        driver.volumes()
