"""Names of boot files: where they lead, and where they never do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_pxe.errors import NetbootError, shown
from vmcloner_pxe.location import Base, base_of, beside


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vmlinuz", "tftp://10.0.0.1/boot/vmlinuz"),
        ("/vmlinuz", "tftp://10.0.0.1/boot//vmlinuz"),
        ("::images/vmlinuz", "tftp://10.0.0.1/images/vmlinuz"),
        ("10.0.0.2::vmlinuz", "tftp://10.0.0.2/vmlinuz"),
        ("tftp://10.0.0.3/a/b", "tftp://10.0.0.3/a/b"),
        ("http://h:8080/a b", "http://h:8080/a%20b"),
        ("HTTPS://h/a", "https://h/a"),
        ("../../etc/passwd", "tftp://10.0.0.1/boot/../../etc/passwd"),
    ],
)
def test_locates(name, found):
    assert str(Base(server="10.0.0.1", prefix="boot/").locate(name)) == found


@pytest.mark.parametrize(
    "name", ["", "a\nb", "a\0", "ftp://h/x", "http://h", "http:///x", "http://h:99999/x", "a b::c",
             "nfs://h/x", "h::"]
)  # fmt: skip
def test_refuses(name):
    with pytest.raises(NetbootError):
        Base(server="10.0.0.1").locate(name)


def test_the_prefix_is_the_option_else_the_boot_files_folder():
    assert base_of("h", "a/b/pxelinux.0", None).prefix == "a/b/"
    assert base_of("h", "pxelinux.0", None).prefix == ""
    assert base_of("h", "a/pxelinux.0", "other/").prefix == "other/"
    assert base_of("h", "x::a/pxelinux.0", None) == Base(server="x", prefix="a/")
    web = base_of("h", "http://w/d/lpxelinux.0", None)
    assert str(web.locate("pxelinux.cfg/default")) == "http://w/d/pxelinux.cfg/default"
    assert str(web.locate("/k")) == "http://w/k"


def test_a_scripts_names_are_beside_it():
    script = Base(server="h").locate("tftp://10.0.0.1/d/boot.ipxe")
    assert str(beside(script).locate("vmlinuz")) == "tftp://10.0.0.1/d/vmlinuz"


@given(st.text(max_size=80), st.text(alphabet="ab/:.htp", max_size=20))
def test_any_name_is_a_location_or_an_error(name, prefix):
    try:
        found = Base(server="10.0.0.1", prefix=prefix).locate(name)
    except NetbootError as error:
        assert str(error).isprintable()
        return
    assert found.scheme in ("tftp", "http", "https")
    assert found.path.isprintable()


def test_a_name_of_the_network_is_shown_short_and_cannot_act():
    assert shown("a\r\n\x1b[2J") == r"a\r\n\x1b[2J"
    assert shown("a" * 201) == "a" * 200 + "…"
