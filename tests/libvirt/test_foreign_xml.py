"""Domain XML that vmcloner hasn't written."""

from vmcloner_core.testing.samples import make_labels
from vmcloner_libvirt import metadata, usage


def test_an_image_in_ceph_is_known_by_one_path_however_it_is_named():
    """By a domain of the host's, by one that names libvirt's pool, and by the kernel."""

    class Pool:
        def storagePoolLookupByName(self, name):  # noqa: N802 - libvirt's
            assert name == "ceph"
            return self

        def storageVolLookupByName(self, name):  # noqa: N802 - libvirt's
            return self

        def path(self):
            return "vms/web-1-disk0"

    named = "<source protocol='rbd' name='vms/web-1-disk0'><host name='m'/></source>"
    mapped = "<source dev='/dev/rbd/vms/web-1-disk0'/>"
    pooled = "<source pool='ceph' volume='web-1-disk0'/>"
    for source in (named, mapped, pooled):
        disk = metadata.parse(f"<disk>{source}</disk>")
        found = usage._source(Pool(), disk, None)
        assert str(found.path) == "/dev/rbd/vms/web-1-disk0"
    other = metadata.parse("<source protocol='iscsi' name='iqn.x/1'/>")
    assert metadata.path_of(other) is None


def test_labels_that_are_not_text_are_not_ours():
    root = metadata.parse("<domain><name>web-1</name></domain>")
    metadata.add_labels(root, make_labels())
    assert metadata.labels_in(root) == make_labels()
    root.find("metadata")[0].set("owner", "%FF")
    assert metadata.labels_in(root) is None


def test_a_card_without_a_type_is_in_no_known_network():
    card = "<interface><mac address='a'/><source network='n'/></interface>"
    root = metadata.parse(f"<domain><devices>{card}</devices></domain>")
    assert metadata.networks_of(root) == ("",)
