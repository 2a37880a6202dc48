"""iPXE scripts of the simplest kind, and the loud refusal of the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_pxe import ipxe
from vmcloner_pxe.errors import NetbootError
from vmcloner_pxe.pxelinux import ConfigError, Kernel, LocalBoot

VALUES = {"mac": "52:54:00:00:00:01", "net0/mac:hexhyp": "52-54-00-00-00-01"}


def chosen(text: str, chain=pytest.fail):
    return ipxe.parse(b"#!ipxe\n" + text.encode(), VALUES, chain)


def test_reads_a_kernel_with_its_initrds():
    found = chosen(
        "dhcp\necho hello\nkernel --name k vmlinuz initrd=i.gz mac=${mac}\n"
        "initrd i.gz\ninitrd http://h/${net0/mac:hexhyp}.gz\nboot\n"
    )
    assert found == Kernel(
        label="vmlinuz",
        kernel="vmlinuz",
        arguments="mac=52:54:00:00:00:01",
        initrds=("i.gz", "http://h/52-54-00-00-00-01.gz"),
    )


@pytest.mark.parametrize("text", ["exit", "sanboot --no-describe --drive 0x80"])
def test_local_boot(text):
    assert isinstance(chosen(text), LocalBoot)


def test_chains_to_another_script_but_not_for_ever():
    scripts = {"next.ipxe": b"#!ipxe\nkernel k\nboot\n"}
    assert chosen("chain next.ipxe", lambda name: scripts[name]).kernel == "k"
    with pytest.raises(ConfigError):
        chosen("chain x", lambda _name: b"#!ipxe\nchain x\n")


@pytest.mark.parametrize(
    "text",
    [
        "iseq ${mac} x && boot",
        "menu choose",
        ":label",
        "kernel k \\\nquiet\nboot",
        "kernel ${unknown}",
        "set x y",
        "kernel k",
        "boot",
        "kernel",
        "kernel k\nboot\0",
        "kernel \x1b[2J",
        "x" * 5000,
        "sanboot http://h/disk",
    ],
)
def test_the_rest_is_refused(text):
    with pytest.raises(ConfigError):
        chosen(text)


@given(st.text(alphabet="#!ipxe \n\tkernlbotdcha${}/:\\&|\x07é", max_size=200))
def test_any_text_is_a_choice_or_an_error(text):
    try:
        found = ipxe.parse(b"#!ipxe\n" + text.encode(), VALUES, lambda _name: b"#!ipxe\nexit")
    except NetbootError as error:
        assert str(error).isprintable()
        return
    assert isinstance(found, Kernel | LocalBoot)
