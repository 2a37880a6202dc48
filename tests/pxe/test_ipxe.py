"""iPXE scripts: what they boot, as iPXE does, and the loud refusal of what can't be known here.

The answers are those of the iPXE in QEMU 7.2.
"""

import uuid
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import VmclonerError
from vmcloner_pxe import ipxe
from vmcloner_pxe.dhcp import Lease
from vmcloner_pxe.resolver import Guest, _variables
from vmcloner_syslinux.choice import Kernel, LocalBoot
from vmcloner_syslinux.config import ConfigError

VALUES = {
    "mac": "52:54:00:00:00:01", "ip": "10.0.2.15", "platform": "pcbios",
    "uuid": str(uuid.UUID(int=1)),
}  # fmt: skip


def chosen(text: str, **scripts: str):
    def chain(name: str) -> bytes | None:
        return f"#!ipxe\n{scripts[name]}".encode() if name in scripts else None

    return ipxe.parse(b"#!ipxe\n" + text.encode(), VALUES, chain)


def which(text: str, **scripts: str) -> str:
    found = chosen(text, **scripts)
    if isinstance(found, LocalBoot):
        return "local"
    return f"{found.kernel} {found.arguments} {','.join(found.initrds)}".strip()


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


@pytest.mark.parametrize("magic", [b"#!ipxe\n", b"#!gpxe\n", b"#!ipxe\r\n", b"#!ipxe # x\n"])
def test_both_names_begin_a_script(magic):
    assert ipxe.parse(magic + b"exit", {}, lambda _name: None) == LocalBoot(label="exit")
    with pytest.raises(ConfigError, match="not an iPXE script"):
        ipxe.parse(b"#!ipxes\nexit", {}, lambda _name: None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("initrd i1\nkernel k1 a\nboot", "k1 a i1"),
        ("kernel k1 a\nkernel k2 b\ninitrd i1\nboot", "k2 b i1"),
        ("kernel k1 a\ninitrd i1\nboot http://h/k2 b", "http://h/k2 b i1"),
        ("kernel k1 a\ninitrd i1\nboot k1", "k1 a i1"),
        ("kernel k1 a\nboot k1 z", "k1 z"),
        ("kernel --name kk k1 a\nboot kk", "k1 a"),
        ("kernel http://h/d/k1?x=1 a\nimgargs k1 b c\nboot", "http://h/d/k1?x=1 b c"),
        ("kernel k1 a\nimgargs k1\nboot", "k1"),
        ("imgfetch k1 a\nboot k1", "k1 a"),
        ("initrd i1\nkernel k1\nimgfree\nkernel k2\nboot", "k2"),
        ("initrd i1\ninitrd i2\nimgfree i1\nkernel k2\nboot", "k2  i2"),
        ("kernel k1 a # b c\nboot", "k1 a"),
        ("kernel k1 a \\\n  b\nboot", "k1 a b"),
        ("kernel k1 a\ninitrd i1\nmd5sum k1 i1\nsha1sum k1\nboot", "k1 a i1"),
        ("md5sum || kernel k1 a\nboot", "k1 a"),
        ("imgstat\nsleep 3\nset x y\nkernel k1 a ||\nboot ||", "k1 a"),
    ],
)
def test_images(text, answer):
    assert which(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("iseq a a && kernel k1 yes || kernel k2 no\nboot", "k1 yes"),
        ("iseq a b && kernel k1 yes || kernel k2 no\nboot", "k2 no"),
        ("iseq ${foo} ${bar} && kernel k1 yes || kernel k2 no\nboot", "k1 yes"),
        ("isset ${mac} && kernel k1 set ||\nisset ${foo} || kernel k1 unset\nboot", "k1 unset"),
        ("isset ${foo} ; kernel k1 a\nboot", "k1 a"),
        ("goto x\nkernel k2 b\nboot\n:x\nkernel k1 a\nboot", "k1 a"),
        ("goto x\n:x kernel k1 a\nboot", "k1 a"),
        ("goto nope || kernel k1 a\nboot", "k1 a"),
        ("cpuid --ext 29 && kernel k1 64 || kernel k1 32\nboot", "k1 64"),
        ("prompt --timeout 500 press && kernel k2 b || kernel k1 a\nboot", "k1 a"),
        ("iseq ${smbios/manufacturer} HP && exit ||\nkernel k1\nboot", "k1"),
    ],
)
def test_conditions(text, answer):
    assert which(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", "x=${nosuch}y|x=y"),
        ("", "${mac:hexhyp} ${mac:hexraw} ${net0/mac} ${netX/mac} ${net0.dhcp/ip}|"
             "52-54-00-00-00-01 525400000001 52:54:00:00:00:01 52:54:00:00:00:01 10.0.2.15"),
        ("set a b c/d\n", "${a:uristring} ${a:hex}|b%20c%2Fd 62:20:63:2f:64"),
        ("set a   b   c\n", "${a}|b c"),
        ("set b c\nset c d\n", "${${b}}|d"),
        ("inc n\ninc n 5\n", "${n}|6"),
        ("set i:int32 -1\ninc i\n", "${net${i}/mac}|52:54:00:00:00:01"),
        ("set space:hex 20:20\nset space ${space:string}\n", "a${space}b|a b"),
        ("set a b\nclear a\n", "x${a}|x"),
    ],
)  # fmt: skip
def test_settings(text, value):
    used, _, expected = value.partition("|")
    assert which(f"{text}kernel k1 {used}\nboot") == f"k1 {expected}".strip()


MENU = "menu title\nitem --gap -- choices\nitem a A\nitem\nitem --key x b B\n"


@pytest.mark.parametrize(
    ("choose", "answer"),
    [
        ("choose --timeout 500 --default b x", "b"),
        ("choose --timeout 500 x", "a"),
        ("choose -t500 -db x", "b"),
        ("choose -t 500 y\nchoose -t 500 -d b x || set x none", "none"),  # a menu is shown once
        ("choose --keep -t 500 y\nchoose -t 500 -d b x", "b"),
        ("choose -k -t 500 y\nchoose -t 500 -d b x", "b"),
        ("choose --timeout 500 --default gone x", "a"),
        ("item --default c C\nchoose -t 500 x", "c"),
        ("choose --menu other -t 500 x || set x none", "none"),
    ],
)
def test_menus_are_left_to_their_time(choose, answer):
    assert which(f"{MENU}{choose}\nkernel k1 ${{x}}\nboot") == f"k1 {answer}"


def test_local_boot():
    for text in ("exit", "exit 1", "sanboot --no-describe --drive 0x80", "sanboot -n -d 0x80"):
        assert isinstance(chosen(text), LocalBoot)


def test_chained_scripts_share_what_is_set_and_come_back():
    assert which("set v 1\nchain two", two="kernel k1 ${v}\nboot") == "k1 1"
    assert which("chain two\nkernel k1 after\nboot", two="echo hi") == "k1 after"
    assert which("chain two\nkernel k1 after\nboot", two="exit\nkernel k2\nboot") == "k1 after"
    assert which("chain --replace two\nkernel k1 after\nboot", two="exit") == "local"
    assert which("chain two || kernel k2 b\nboot", two="goto gone") == "k2 b"
    assert which("chain two || kernel k2 b\nboot", two="exit 1") == "k2 b"
    assert which("chain gone || kernel k1 a\nboot") == "k1 a"
    assert which("chain -ar two\nkernel k1 after\nboot", two="exit") == "local"
    assert which("kernel k1 a\nchain k1 b") == "k1 b"


def test_an_initrd_with_a_path_is_to_be_archived():
    found = chosen("kernel k\ninitrd i\ninitrd http://h/p /etc/p.cfg mode=600 mkdir=1\nboot")
    assert found.initrds == ("i", "http://h/p")
    assert found.archived == ("", "/etc/p.cfg mode=600 mkdir=1")


def test_scripts_without_end():
    with pytest.raises(ConfigError, match="circle"):
        chosen("chain x", x="chain x")
    with pytest.raises(ConfigError, match="circle"):
        chosen(":a\nchain x\ngoto a", x="echo")
    with pytest.raises(ConfigError, match="more than 1048576 bytes of scripts"):
        chosen(":a\nchain x\ngoto a", x="#\n" * 200_000)
    with pytest.raises(ConfigError, match="goes on and on"):
        chosen(":a\ngoto a")
    with pytest.raises(ConfigError, match=r"without end|characters"):
        chosen("set a ${a}x${a}\n:a\nset a ${a}${a}xxxxxxxx\ngoto a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel k\nimgverify k k.sig\nboot", "line 3: can't do .*imgverify"),
        ("echo\n\n\nreboot", "line 5: can't do reboot: the command 'reboot'"),
        ("shell", "line 2: can't do shell"),
        ("read x", "read"),
        ("config", "config"),
        ("cpuid --ext 28", "--ext 29"),
        ("prompt", "waits for a key"),
        (f"{MENU}choose x", "waits for a key"),
        (f"{MENU}choose --timeout 0 x", "waits for a key"),
        ("sanboot http://h/disk", "first disk"),
        ("chain http://h/x##params", "parameters"),
        ("kernel k\ninitrd http://h/x preseed.cfg\nboot", "line 4: .*as preseed.cfg"),
        ("kernel --bogus k", "--bogus"),
        ("kernel ${mac:nonsense}", "nonsense"),
        ("kernel k", "ends without boot"),
        ("boot", "fails"),
        ("kernel", "fails"),
        ("set x:hex zz", "fails"),
        ("kernel k\nboot\0", "not an iPXE script"),
        ("kernel k a\x07b\nboot", "control character"),
        ("x" * 5000, "5000 characters"),
        ("kernel k\n" + "initrd i\n" * 17 + "boot", "17 initrds"),
    ],
)
def test_the_rest_is_refused_by_line_and_command(text, message):
    with pytest.raises(ConfigError, match=message):
        chosen(text)


WORDS = st.sampled_from(
    ["kernel", "initrd", "boot", "chain", "goto", ":a", "a", "set", "${a}", "${", "}", "||", "&&",
     "menu", "item", "choose", "--timeout", "5", "inc", "imgargs", "exit", "iseq", "--name", "\\",
     ":hex", "20", "\x07", "isset", "imgfree", "prompt", "-"]
)  # fmt: skip
LINES = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=12).map("\n".join)


@given(st.one_of(LINES, st.text(max_size=200)), LINES)
def test_any_text_is_a_choice_or_an_error(text, other):
    script = b"#!ipxe\n" + text.encode()
    try:
        found = ipxe.parse(script, VALUES, lambda _name: b"#!ipxe\n" + other.encode())
    except VmclonerError as error:
        assert str(error).isprintable()
        return
    assert isinstance(found, Kernel | LocalBoot)


def test_what_a_lease_says_can_be_asked_for():
    lease = Lease(
        address=IPv4Address("10.0.0.9"),
        netmask=IPv4Address("255.255.255.0"),
        router=None,
        boot_server="10.0.0.1",
        boot_file="boot.ipxe",
        config_file=None,
        path_prefix=None,
        server=IPv4Address("10.0.0.2"),
        server_mac=b"\2" * 6,
        dns=IPv4Address("10.0.0.3"),
        host_name="web-1",
        domain="example.org",
    )
    values = _variables(Guest(mac="52:54:00:00:00:01"), lease)
    text = "#!ipxe\nkernel k ${netX/ip} ${dns} ${hostname}.${domain} ${gateway}${uuid}|${filename}"
    found = ipxe.parse(f"{text}\nboot".encode(), values, lambda _name: None)
    assert isinstance(found, Kernel)
    assert found.arguments == "10.0.0.9 10.0.0.3 web-1.example.org |boot.ipxe"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("kernel", "no"), ("imgselect", "no"), ("imgload", "no"), ("imgargs k2", "yes"),
        ("sleep", "no"), ("sleep 1", "yes"), ("show ip", "yes"), ("show gone", "no"),
        ("ifopen", "yes"), ("ifopen net0", "yes"), ("ifopen net1", "no"), ("dhcp net1", "no"),
        ("ifconf -c dhcp net0", "yes"), ("imgfree k2", "yes"), ("imgfree gone", "no"),
        ("set v:int32 x", "no"), ("set v:ipv4 1.2.3", "no"), ("inc ip", "no"), ("inc v x", "no"),
    ],
)  # fmt: skip
def test_what_succeeds(command, answer):
    text = f"kernel k2 a\n{command} && set v yes || set v no\nkernel k1 ${{v}}\nboot"
    assert which(text) == f"k1 {answer}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("set n 5", "${n:int32} ${n:uint8} ${n:hexraw} ${mac:int32}|53 0x35 35"),
        ("set n:int32 5\ninc n", "${n} ${n:int32} ${n:hex} ${n:string}|6 6 00:00:00:06"),
        ("inc n", "${n} ${n:hex}|1 00:00:00:01"),
        ("set n:uint8 200\nset m:int8 0x7f", "${n} ${n:int8} ${m}|0xc8 -56 127"),
        ("set a:ipv4 10.1.2.3", "${a} ${a:hexraw} ${a:int32} ${ip:hexraw}|"
                               "10.1.2.3 0a010203 167838211 0a00020f"),
        ("set 210:string x/\nset 12 h", "${210:string} ${hostname} ${12:string}|x/ h h"),
        ("set net0/v card\nset v own", "${v} ${net0/v} ${netX/v}|own card card"),
        ("set v own\nset net0/v card\nclear v", "${v}|card"),
        ("set a:base64 YWI=\nset b:uristring a%20b", "${a:string} ${b} ${b:string}|ab a%20b a b"),
    ],
)  # fmt: skip
def test_types(text, value):
    used, _, expected = value.partition("|")
    assert which(f"{text}\nkernel k1 {used}\nboot") == f"k1 {expected}"
