"""Domain XML that vmcloner hasn't written."""

from vmcloner_core.testing.samples import make_labels
from vmcloner_libvirt import metadata


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
