"""Menus and scripts beside the real PXELINUX and iPXE, in QEMU: both boot the same or we refuse."""

import functools
import re
import tempfile
import uuid
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pxe.machine import FIRMWARE, MAC, MODULES, Booted, boot, initrd, kernel
from vmcloner_core.errors import VmclonerError
from vmcloner_pxe.dhcp import Lease
from vmcloner_pxe.errors import Refused
from vmcloner_pxe.fetching import Fetcher
from vmcloner_pxe.location import Location
from vmcloner_pxe.resolver import Found, Guest, Resolver

pytestmark = pytest.mark.others

ROUTER = IPv4Address("10.0.2.2")
MACHINE = uuid.UUID(int=0)
"""QEMU's, where it is given none."""
KERNELS = ("k1", "k2", "k3", "d/k1", "d/k4", "a", "b", "c")
IMAGES = {
    **{name: kernel(name) for name in KERNELS},
    **{name: initrd(name) for name in ("i1", "i2", "d/i1")},
}
FEW = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""A machine takes about a second to boot."""


@attrs.frozen(kw_only=True)
class Folder(Fetcher):
    """Fetches from QEMU's TFTP server, which is in memory here."""

    files: Mapping[str, bytes]

    def text(self, location: Location) -> bytes:
        name = location.path.lstrip("/")
        if (location.scheme, location.host) != ("tftp", str(ROUTER)) or name not in self.files:
            raise Refused(f"{location}: not there")
        return self.files[name]


def answer(files: Mapping[str, bytes], boot_file: str) -> Found:
    """Return what our reader chooses."""
    lease = Lease(
        address=IPv4Address("10.0.2.15"),
        netmask=IPv4Address("255.255.255.0"),
        router=ROUTER,
        boot_server=str(ROUTER),
        boot_file=boot_file,
        config_file=None,
        path_prefix=None,
        server=ROUTER,
        server_mac=bytes(6),
        dns=IPv4Address("10.0.2.3"),
    )
    return Resolver(fetcher=Folder(deadline=0, files=files)).find(
        Guest(mac=MAC, machine=MACHINE), lease
    )


def same(found: Found, booted: Booted) -> None:
    """Check that what was booted is what was chosen."""
    path = found.kernel.path.lstrip("/") if found.kernel else None
    assert booted.kernel == path
    arguments = re.sub(r"(^| )(BOOT_IMAGE|initrd)=[^ ]*", "", booted.arguments)
    # What SYSAPPEND adds stands before what is typed behind a label there.
    assert sorted(arguments.split()) == sorted(found.arguments.split())
    # A kernel that was named before another is given to that as an initrd: to no use.
    real, names = booted.initrds, [where.path.lstrip("/") for where in found.initrds]
    assert [name for name in real if name not in KERNELS] == [
        name for name in names if name not in KERNELS
    ]
    for name in found.archived:
        assert name.split()[0].encode() in booted.ramdisk if name else True


def beside(boot_file: str, files: Mapping[str, bytes], more: Mapping[str, bytes]) -> None:
    """Check that both boot the same, unless we refuse."""
    files = {**IMAGES, **files}
    try:
        found = answer(files, boot_file)
    except VmclonerError:
        return
    named = [found.kernel, *found.initrds] if found.kernel else []
    if any(where.path.lstrip("/") not in files for where in named):
        return  # it isn't fetched, and said so
    for last in (False, True):  # on a busy host, firmware may find that an answer took too long
        with tempfile.TemporaryDirectory() as folder:
            try:
                same(found, boot(Path(folder), boot_file, {**files, **more}))
                return
            except TimeoutError:
                pass  # it waits for a key, or tries for ever
            except AssertionError:
                if last:
                    raise


# --- PXELINUX -----------------------------------------------------------------------------------

LABEL = st.sampled_from(["a", "b", "c", "d x"])
WITHIN = st.sampled_from(
    ["KERNEL k1", "LINUX k2", "KERNEL k3 x=1", "KERNEL d/k4", "KERNEL k2", "APPEND a=1 initrd=i1",
     "APPEND -", "APPEND", "APPEND initrd=i1,i2 b=2  c", "INITRD i2", "INITRD i1,d/i1",
     "MENU DEFAULT", "MENU HIDE", "MENU LABEL ^One", "LOCALBOOT 0",
     "IPAPPEND 3", "SYSAPPEND 2", "IPAPPEND 0", "TEXT HELP\nAPPEND no\nENDTEXT",
     "CONFIG other", "COM32 chain.c32\nAPPEND hd0", "MENU INDENT 2",
     "COM32 menu.c32", "KERNEL menu.c32\nAPPEND other", "MENU PASSWD x", "MENU QUIT",
     "MENU EXIT", "MENU GOTO s", "COM32 linux.c32\nAPPEND k1 initrd=i1 e=1", "# KERNEL k1",
     "MENU DEFAULT\nMENU HIDE", "\tkernel\tk1", "KERNEL /k1", "KERNEL ::k2", "INITRD /i1"]
)  # fmt: skip
ENTRY = st.tuples(LABEL, st.lists(WITHIN, min_size=1, max_size=4)).map(
    lambda entry: "\n".join([f"LABEL {entry[0]}", *entry[1]])
)
BETWEEN = st.sampled_from(
    ["DEFAULT a", "DEFAULT b x=1", "DEFAULT menu.c32", "UI menu.c32", "ONTIMEOUT b",
     "ONTIMEOUT k2 y", "PROMPT 1", "PROMPT 0", "INCLUDE inc", "MENU INCLUDE inc", "INCLUDE inc tag",
     "MENU BEGIN s", "MENU END", "MENU SEPARATOR", "MENU START", "MENU DEFAULT", "MENU HIDDEN",
     "APPEND glob", "APPEND glob initrd=i2", "IPAPPEND 2", "MENU TITLE \x07T",
     "SAY hello", "F1 none", "DEFAULT d", "NOESCAPE 1", "UI menu.c32 other", "DEFAULT c",
     "MENU MASTER PASSWD x", "ALLOWOPTIONS 0", "INCLUDE gone", "KERNEL k3", "MENU IMMEDIATE"]
)  # fmt: skip
CONFIG = st.lists(ENTRY | ENTRY | BETWEEN, min_size=1, max_size=7).map("\n".join)
BEGIN = st.sampled_from(["UI menu.c32", "DEFAULT menu.c32", "DEFAULT a", "DEFAULT b\nPROMPT 1"])


@functools.cache
def pxelinux() -> dict[str, bytes]:
    """Return PXELINUX and its modules, as files."""
    modules = (
        f"{name}.c32" for name in ("ldlinux", "menu", "libutil", "libcom32", "chain", "linux")
    )
    found = {name: (MODULES / name).read_bytes() for name in modules}
    return {"pxelinux.0": FIRMWARE.read_bytes(), **found}


@FEW
@given(begin=BEGIN, config=CONFIG, inc=CONFIG, other=CONFIG)
def test_menus_beside_pxelinux(begin: str, config: str, inc: str, other: str) -> None:
    files = {
        "pxelinux.cfg/default": f"TIMEOUT 5\nTOTALTIMEOUT 60\n{begin}\n{config}\n".encode(),
        "inc": f"{inc}\n".encode(),
        "other": f"TIMEOUT 5\n{other}\n".encode(),
    }
    beside("pxelinux.0", files, pxelinux())


# --- iPXE ---------------------------------------------------------------------------------------

URI = st.sampled_from(["k1", "k2", "d/k1", "tftp://${next-server}/k3", "/k2", "${n}k1"])
VALUE = st.sampled_from(
    ["x", "a b", "${v}", "${w}${v}", "${mac}", "${net0/mac:hexhyp}", "${ip}", "${uuid}",
     "${v:uristring}", "1", "${unset}", "k1", "x${n}", "${v:hexraw}", "${netX/ip}", "${buildarch}",
     "${platform}", "", "${next-server}", "${n:int32}", "${ip:hexraw}", "${${w}}",
     "a\\b", "'q r'", '"q"', "a=b#c", "${net0/ip}", "${n:uint8}", "${mac:hexraw}",
     "${net0.dhcp/gateway}", "v"]
)  # fmt: skip
COMMAND = st.one_of(
    st.tuples(st.sampled_from(["set v", "set w", "echo", "set n", "set v:string"]), VALUE)
    .map(" ".join),
    st.tuples(
        st.sampled_from(
            ["kernel", "imgload", "imgfetch", "boot", "imgexec", "chain", "initrd", "kernel -n k9",
             "imgargs", "imgselect", "imgfetch --name v", "kernel --timeout 3000", "module"]
        ),
        URI, VALUE,
    ).map(" ".join),
    st.tuples(st.sampled_from(["iseq", "isset"]), VALUE, VALUE).map(" ".join),
    st.sampled_from(
        ["initrd i1", "initrd i2", "initrd i1 /etc/x", "initrd --name i d/i1", "imgfree",
         "imgfree i1", "inc n", "inc n 5", "clear v", "isset ${n}", "isset ${mac}", "goto end",
         "goto gone", "chain gone", ":end", ":l", "exit", "exit 1", "chain other",
         "chain --replace other", "chain --autofree other", "imgargs k1 z", "boot",
         "sleep 1", "menu M", "item a A",
         "item --gap -- G", "item --default b B", "item --key x c C", "choose --timeout 500 v",
         "choose --default b --timeout 500 v", "choose -d none -t 500 v", "prompt --timeout 500 hm",
         "cpuid --ext 29", "imgstat", "sanboot --drive 0x80", "sanboot --no-describe --drive 0x80",
         "iseq ${platform} pcbios", "imgfetch k1", "kernel k1 a", "kernel k2", "# kernel k3",
         "initrd i1 mode=644", "show v", "ifopen", "dhcp", "iseq ${v} ${w}", "item b", "dhcp net0",
         "ifconf", "set v:int32 0x10", "set v:uint8 200", "set v:ipv4 1.2.3.4", "set v:hex 61:62",
         "set net0/v 3", "isset ${net0/ip}", "isset ${net1/mac}", "imgargs", "kernel", "clear n",
         "time echo x", "nslookup v x", "ping -c 1 ${next-server}", "dhcp net1", "ifopen net1",
         "show gone", "imgselect", "imgload", "sleep", "ifconf -c dhcp net0"]
    ),
)  # fmt: skip
LINE = st.lists(
    st.tuples(COMMAND, st.sampled_from(["||", "&&", "||", ";"])), min_size=1, max_size=3
).flatmap(
    lambda parts: st.sampled_from([parts[-1][1], "", "||"]).map(
        lambda last: " ".join(
            f"{command} {then}" for command, then in [*parts[:-1], (parts[-1][0], last)]
        ).strip()
    )
)
SCRIPT = st.tuples(
    st.lists(LINE, min_size=1, max_size=7),
    st.sampled_from(["boot", "boot", "kernel k1 ${v}\nboot", "boot k1 ${w}", "exit", ":end\nboot"]),
).map(lambda parts: "\n".join([*parts[0], parts[1]]))


@FEW
@given(script=SCRIPT, other=SCRIPT)
def test_scripts_beside_ipxe(script: str, other: str) -> None:
    files = {"script.ipxe": f"#!ipxe\n{script}\n".encode(), "other": f"#!ipxe\n{other}\n".encode()}
    beside("script.ipxe", files, {})
