"""What a disk's own boot loader would boot: menus as distributions write them, and bad ones."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.memory import tree
from vmcloner_boot.bls import _version, bls_entries
from vmcloner_boot.choice import Choice
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.grub_commands import Machine
from vmcloner_boot.grub_environment import Environment
from vmcloner_boot.grub_interpreter import Interpreter
from vmcloner_boot.grub_parser import Command, parse
from vmcloner_boot.loaders import choose as choose_within
from vmcloner_boot.trees import Tree
from vmcloner_core.errors import DeadlineExceeded

SAMPLES = Path(__file__).parent / "samples"
DEBIAN = (SAMPLES / "debian.cfg").read_text()
FEDORA = (SAMPLES / "fedora.cfg").read_text()
ROOT = "6f1cbc1e-5b1f-4a39-8d4f-3f2f0e6d1c01"
BOOT = "11111111-2222-4333-8444-555555555555"
KERNELS = {
    f"boot/{name}-6.1.0-{build}-amd64": f"{name} {build}"
    for name in ("vmlinuz", "initrd.img")
    for build in (17, 18)
}


def choose(trees: Sequence[Tree], budget: Budget | None = None) -> Choice:
    return choose_within(trees, budget or Budget())


def debian(config: str = DEBIAN, **files: object) -> Tree:
    more = {name.replace("__", "/"): content for name, content in files.items()}
    return tree({"boot/grub/grub.cfg": config, **KERNELS, **more}, 1, "msdos", ROOT)


def grubenv(**values: str) -> str:
    lines = "".join(f"{key}={value}\n" for key, value in values.items())
    return f"# GRUB Environment Block\n{lines}".ljust(1024, "#")


def menu(entries: str) -> Choice:
    return choose([debian(entries)])


def names(choice: Choice) -> list[str]:
    return [choice.kernel.path, *(found.path for found in choice.initrds)]


# --- GRUB as Debian writes it -------------------------------------------------------------------


def test_debian() -> None:
    choice = choose([debian()])
    assert names(choice) == ["/boot/vmlinuz-6.1.0-18-amd64", "/boot/initrd.img-6.1.0-18-amd64"]
    assert choice.cmdline == f"root=UUID={ROOT} ro quiet console=ttyS0"
    assert choice.source == "entry 'Debian GNU/Linux' of /boot/grub/grub.cfg on partition 1"


@pytest.mark.parametrize(
    "saved",
    [
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-17-amd64",
        "gnulinux-advanced-6f1cbc1e>gnulinux-6.1.0-17-amd64-advanced-6f1cbc1e",
        "1>1",
        "1>gnulinux-6.1.0-17-amd64-advanced-6f1cbc1e",
    ],
)
def test_a_default_in_a_submenu(saved: str) -> None:
    config = DEBIAN.replace('set default="0"', 'set default="${saved_entry}"')
    env = grubenv(saved_entry=saved)
    choice = choose([debian(config, boot__grub__grubenv=env)])
    assert names(choice)[0] == "/boot/vmlinuz-6.1.0-17-amd64"
    config = DEBIAN.replace('default="0"', f'default="{saved}"')
    assert choose([debian(config)]).source == choice.source


def test_a_submenu_alone_boots_its_first() -> None:
    choice = choose([debian(DEBIAN.replace('default="0"', 'default="1"'))])
    assert "with Linux 6.1.0-18" in choice.source


def test_what_counts_for_one_boot_is_left_to_grub() -> None:
    """GRUB takes it back as it boots it; here it would count for ever."""
    env = grubenv(next_entry="1>1")
    assert names(choose([debian(boot__grub__grubenv=env)]))[0].endswith("18-amd64")


def test_a_default_that_is_not_there() -> None:
    """GRUB boots its first entry then; so is it here, and said."""
    choice = choose([debian(DEBIAN.replace('default="0"', 'default="gone"'))])
    assert names(choice)[0].endswith("18-amd64")
    assert "its default 'gone' isn't in its menu" in choice.source


def test_boot_of_its_own() -> None:
    config = DEBIAN.replace("/boot/vmlinuz", "/vmlinuz").replace("/boot/initrd", "/initrd")
    config = config.replace(f"{ROOT}\n", f"{BOOT}\n")
    boot_files = {name.removeprefix("boot/"): content for name, content in KERNELS.items()}
    boot = tree({"grub/grub.cfg": config, **boot_files}, 1, "gpt", BOOT)
    root = tree({"etc/fstab": "", "boot": {}}, 2, "gpt", ROOT)
    for order in ([boot, root], [root, boot]):
        choice = choose(order)
        assert names(choice)[0] == "/vmlinuz-6.1.0-18-amd64"
        assert choice.kernel.tree is boot


def test_custom_cfg_is_sourced() -> None:
    custom = "menuentry own { linux /boot/vmlinuz-6.1.0-17-amd64 own }\nset default=own\n"
    choice = choose([debian(boot__grub__custom_cfg="", **{"boot__grub__custom.cfg": custom})])
    assert choice.cmdline == "own"


# --- GRUB's language, where pygrub's parser fails -----------------------------------------------

K = "/boot/vmlinuz-6.1.0-18-amd64"
I17, I18 = "/boot/initrd.img-6.1.0-17-amd64", "/boot/initrd.img-6.1.0-18-amd64"


@pytest.mark.parametrize(
    ("script", "cmdline", "initrds"),
    [
        (f"menuentry a {{ linuxefi {K} x\ninitrdefi {I18}\n}}", "x", [I18]),
        (f"menuentry a {{ linux16 {K} x\ninitrd16 {I18}\n}}", "x", [I18]),
        (f"menuentry a {{ linux {K} x\ninitrd {I17} {I18}\n}}", "x", [I17, I18]),
        (f"menuentry a {{ linux ($root){K} x\n}}", "x", []),
        (f"menuentry a {{ linux (hd0,msdos1){K} x\n}}", "x", []),
        (f"menuentry a {{ linux (hd0,1){K} x\n}}", "x", []),
        (f"if true; then\nmenuentry a {{ linux {K} 1 }}\nelse\nmenuentry a {{ linux {K} 2 }}\nfi",
         "1", []),
        (f'if [ "$x" = "y" ]; then o=one; elif [ -n "$x" ]; then o=two; else set o=three; fi\n'
         f"menuentry a {{ linux {K} $o ${{o}}s '$o' \"$o\\$o\" }}", "three threes $o three$o", []),
        (f'set o="a b"\nmenuentry a {{ linux {K} $o "$o" x$none "" }}', 'a b "a b" x ', []),
        (f"default=b\nmenuentry a --id a {{ linux {K} a }}\nmenuentry --id=b B {{ linux {K} b }}",
         "b", []),
        (f"set default=b\nmenuentry 'b' {{ linux {K} title }}", "title", []),
        (f"for o in a b c; do set last=$o; done\nmenuentry a {{ linux {K} $last }}", "c", []),
        (f"while [ \"$n\" != xxx ]; do set n=x$n; done\nmenuentry a {{ linux {K} $n }}", "xxx", []),
        (f"function f {{ set o=f; }}\nf\nmenuentry a {{ linux {K} $o # not this\n}}", "f", []),
        (f"menuentry a {{ linux {K} a \\\n b; initrd {I18}; }}", "a b", [I18]),
        (f"if ! false; then set o=not; fi; menuentry a {{ linux {K} $o }}", "not", []),
        (f"if [ 10 -gt 9 -a ! a = b -o x = y ]; then o=num; fi\nmenuentry a {{ linux {K} $o }}",
         "num", []),
        (f"if [ -f /none -o -d /boot ]; then o=dir; fi\nmenuentry a {{ linux {K} $o }}", "dir", []),
        (f"search --file --set=r {K}\nmenuentry a {{ linux ($r){K} found }}", "found", []),
        (f"search.fs_uuid {ROOT} r hd9\nmenuentry a {{ linux ($r){K} found }}", "found", []),
        (f"linux {K} direct\ninitrd {I18}\nboot", "direct", [I18]),
        (f"menuentry \"it's\" {{ linux {K} it\\'s }}", "it\\'s", []),
        (f"menuentry a {{ if true; then if false; then :; else linux {K} in; fi; fi; }}", "in", []),
    ],
)  # fmt: skip
def test_scripts(script: str, cmdline: str, initrds: list[str]) -> None:
    choice = menu(script)
    assert choice.cmdline == cmdline
    assert names(choice) == [K, *initrds]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("menuentry a {\nlinux /k", "/boot/grub/grub.cfg:1: what begins here with { isn't closed"),
        ("menuentry a { linux /gone x }", "/gone isn't a file on partition 1"),
        ("menuentry a { echo nothing }", "its entry 'a' names no kernel"),
        ("menuentry Xen { multiboot2 /boot/xen.gz\nmodule2 /boot/vmlinuz }", "starts multiboot2"),
        ("menuentry Windows { chainloader +1 }", "its entry 'Windows' starts chainloader"),
        (f"menuentry a {{ linux {K} 'x }}", ":1: a quote isn't closed"),
        ("if true; then\nmenuentry a { true }", ":2: elif or else or fi is missing"),
        ("fi", ":1: a command is missing before fi"),
        ("menuentry a { linux (hd1,1)/k }", "is on (hd1,1), which isn't on its disk"),
        ("menuentry a { linux (lvm/vg-root)/k }", "is on (lvm/vg-root)"),
        ("while true; do true; done", "doesn't end within 20000 steps"),
        ("function f { f; }\nf", "calls itself more than 64 times"),
        ("set a=x\nwhile true; do set a=$a$a; done", "makes a command longer than"),
        ('x "" ' * 9000, "makes a command longer than"),
        ("x " + '""' * 17000, "makes a command longer than"),
        ("while ; do ; done", ":1: a command is missing before ;"),
        ("while true; do for a in " + "b " * 5000 + "; do\ntrue; done; done", "doesn't end within"),
        ("while true; do menuentry a { true }; done", "more than 1000 entries"),
        ("if true; then " * 80, "nested more than 64 times"),
        ("[ " + "! " * 5000 + "]", "tests more than 100 words"),
        (f"menuentry a {{ linux {K}\ninitrd" + f" {I18}" * 17 + " }", "more than 16 initrds"),
        ("function f { submenu a { f; }; }\nf", "more than 16 menus within one another"),
        ("source /boot/grub/grub.cfg", "calls itself more than 64 times"),
        ("a &", "'&' isn't understood"),
    ],
)  # fmt: skip
def test_scripts_that_are_broken(script: str, reason: str) -> None:
    """Each says what is wrong where; none falls back to a kernel that happens to lie about."""
    with pytest.raises(Unreadable) as caught:
        choose([debian(script, vmlinuz="kernel")])
    assert reason in str(caught.value)
    assert str(caught.value).startswith("/boot/grub/grub.cfg on partition 1: ")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#" * 900_000 + "\nsource /boot/grub/grub.cfg", "more than 2097152 characters"),
        ("echo a b c d;" * 5000 + "\nsource /boot/grub/grub.cfg", "more than 100000 words"),
        ("true;" * 60_000, "more than 100000 words"),
        ("".join(f"set {c}{n}=1\n" for c in "abcdefghij" for n in range(100)), "1000 variables"),
    ],
)
def test_scripts_take_little_memory(script: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        choose([debian(script)])
    assert reason in str(caught.value)


def test_a_guests_words_cannot_act_on_a_terminal() -> None:
    name = "/boot/\x1b]0;owned\x07\x9b31m\u202e\udcff\nvmcloner: all is well"
    with pytest.raises(Unreadable) as caught:
        menu(f"menuentry a {{\nlinux '{name}'\n}}")
    assert str(caught.value).isprintable()
    assert r"\x1b]0;owned\x07\x9b31m\u202e\udcff\nvmcloner" in str(caught.value)
    choice = choose([debian(f"menuentry '{name}' {{\nlinux '{name}'\n}}", **{name: "kernel"})])
    assert choice.source.isprintable()
    assert str(choice.kernel).isprintable()
    with pytest.raises(Unreadable) as caught:
        menu(f"menuentry a {{\nlinux '{'x' * 4000}'\n}}")
    assert len(str(caught.value)) < 1000


def test_scripts_end_in_time() -> None:
    """Steps may be dear: what bounds them is the time that the clone has for all that is read."""
    script = "while true; do\necho " + '"" ' * 8000 + "\ndone"
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        choose([debian(script)], Budget(deadline=began + 0.3))
    assert time.monotonic() - began < 10


@settings(max_examples=200)
@given(
    st.text("abk/{}[]()$'\"\\;\n# =!|-", max_size=80)
    | st.lists(
        st.sampled_from(
            ["if", "then", "fi", "else", "while", "do", "done", "for", "in", "menuentry",
             "function", "{", "}", ";", "\n", "a", "'", '"', "$a", "${", "[", "]", "set",
             "submenu", "linux"]
        ),
        max_size=30,
    ).map(" ".join)
)  # fmt: skip
def test_any_text_is_a_script_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(Unreadable):
        Interpreter({}, Environment(), Budget()).run(text, "x")


@given(st.text())
def test_a_quoted_text_stays_as_it_is(text: str) -> None:
    if "'" not in text:
        (command,) = parse(f"echo '{text}'", "x")
        assert isinstance(command, Command)
        interpreter = Interpreter({}, Environment(), Budget())
        if len(text) < 1000:
            assert interpreter.words(command.words) == ["echo", text.replace("\r", "")]


# --- Boot Loader Specification ------------------------------------------------------------------


def entry(version: str, options: str = "root=/dev/vda2", **keys: str) -> str:
    more = "".join(f"{key.replace('_', '-')} {value}\n" for key, value in keys.items())
    return (
        f"title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\n"
        f"initrd /initramfs-{version}.img\noptions {options}\n{more}"
    )


def fedora(files: Mapping[str, object], *versions: str) -> Sequence[Tree]:
    kernels = {f"{n}-{v}": n for v in versions for n in ("vmlinuz",)}
    initrds = {f"initramfs-{v}.img": v for v in versions}
    boot = tree({**kernels, **initrds, **files}, 2, "gpt", BOOT)
    return [tree({"EFI/x": ""}, 1, "gpt"), boot, tree({"etc/x": ""}, 3, "gpt", ROOT)]


def test_fedora_boots_what_grub_saved() -> None:
    files = {
        "grub2/grub.cfg": FEDORA,
        "grub2/grubenv": grubenv(saved_entry="m-6.5.6-300.fc39.x86_64", kernelopts="root=/x ro"),
        "loader/entries/m-6.5.6-300.fc39.x86_64.conf": entry("6.5.6", "$kernelopts extra"),
        "loader/entries/m-6.10.1-200.fc39.x86_64.conf": entry("6.10.1", "$kernelopts"),
    }
    choice = choose(fedora(files, "6.5.6", "6.10.1"))
    assert names(choice) == ["/vmlinuz-6.5.6", "/initramfs-6.5.6.img"]
    assert choice.cmdline == "root=/x ro extra"
    assert "entry 'Fedora (6.5.6)' of /grub2/grub.cfg on partition 2" in choice.source


def test_without_a_saved_entry_the_newest() -> None:
    files = {
        "grub2/grub.cfg": FEDORA,
        "loader/entries/m-6.9.6-300.conf": entry("6.9.6", "${kernelopts}"),
        "loader/entries/m-6.10.1-200.conf": entry("6.10.1", "${kernelopts}"),
    }
    choice = choose(fedora(files, "6.9.6", "6.10.1"))
    assert names(choice)[0] == "/vmlinuz-6.10.1"
    assert choice.cmdline == "root=/dev/mapper/fedora-root ro rhgb quiet"


def test_entries_without_grub() -> None:
    files = {
        "loader/loader.conf": "timeout 3\ndefault m-6.9*\n",
        "loader/entries/m-6.9.6+3-1.conf": entry("6.9.6"),
        "loader/entries/m-6.10.1.conf": entry("6.10.1"),
        "loader/entries/README": "no entry",
    }
    assert names(choose(fedora(files, "6.9.6", "6.10.1")))[0] == "/vmlinuz-6.9.6"
    files["loader/loader.conf"] = "default other*"
    assert names(choose(fedora(files, "6.9.6", "6.10.1")))[0] == "/vmlinuz-6.10.1"


def test_entries_are_taken_over_once() -> None:
    config = FEDORA + "\nblscfg" * 10
    files = {"grub2/grub.cfg": config, "loader/entries/m-6.9.6-300.conf": entry("6.9.6")}
    grub = Machine(fedora(files), fedora(files)[1], "/grub2", Budget())
    grub.configure(config, "/grub2/grub.cfg", "grub.cfg")
    assert [item.identifier for item in grub.menus.current] == ["m-6.9.6-300"]


@pytest.mark.parametrize(("count", "size"), [(1, 65_537), (17, 65_000)])
def test_entries_that_are_too_large(count: int, size: int) -> None:
    files = {f"loader/entries/m-{n}.conf": entry("6.9.6") + "#" * size for n in range(count)}
    with pytest.raises(Unreadable, match=r"larger than|holds more than"):
        choose(fedora(files, "6.9.6"))


def test_of_entries_only_what_counts_is_kept() -> None:
    text = entry("6.9.6") + "".join(f"x{n} y\n" for n in range(1000))
    (found,) = bls_entries(tree({"loader/entries/m.conf": text}), "/loader/entries")
    assert set(found.keys) <= {"title", "version", "linux", "initrd", "options"}


def test_sort_keys_come_first() -> None:
    files = {
        "loader/entries/a-9.conf": entry("9"),
        "loader/entries/b-8.conf": entry("8", sort_key="fedora"),
        "loader/entries/c-7.conf": entry("7", sort_key="debian"),
    }
    assert names(choose(fedora(files, "7", "8", "9")))[0] == "/vmlinuz-7"


def test_several_initrds_and_options() -> None:
    text = entry("1", "a") + "initrd /microcode\noptions b  c\n"
    files = {"loader/entries/x.conf": text, "microcode": "m"}
    choice = choose(fedora(files, "1"))
    assert names(choice)[1:] == ["/initramfs-1.img", "/microcode"]
    assert choice.cmdline == "a b c"


def test_boot_in_the_root_file_system() -> None:
    """Paths may be of the file system, or leave /boot out."""
    for prefix in ("/boot", ""):
        text = f"title t\nlinux {prefix}/vmlinuz-1\noptions a\n"
        files = {"boot/loader/entries/x.conf": text, "boot/vmlinuz-1": "k"}
        assert names(choose([tree(files, 1, "gpt")]))[0] == "/boot/vmlinuz-1"


def test_versions() -> None:
    ordered = ["5.4", "5.10~rc1", "5.10", "5.10.1", "5.10.1-2.fc39", "5.10.1-10.fc39", "6.1"]
    assert sorted(sorted(ordered), key=_version) == ordered


# --- extlinux and links -------------------------------------------------------------------------

ALPINE = """
# Generated by update-extlinux 6.04_pre1-r11
DEFAULT menu.c32
PROMPT 0
MENU TITLE Alpine/Linux Boot Menu
TIMEOUT 10
LABEL other
  LINUX vmlinuz-other
LABEL virt
  MENU DEFAULT
  MENU LABEL Linux virt
  LINUX vmlinuz-virt
  INITRD initramfs-virt
  APPEND root=UUID=1 modules=sd-mod,usb-storage,ext4 rootfstype=ext4
MENU SEPARATOR
"""


@pytest.mark.parametrize("folder", ["boot/", ""])
def test_alpine(folder: str) -> None:
    files = {f"{folder}{name}": name for name in ("vmlinuz-virt", "initramfs-virt")}
    choice = choose([tree({f"{folder}extlinux.conf": ALPINE, **files}, 1, "msdos")])
    assert names(choice) == [f"/{folder}vmlinuz-virt", f"/{folder}initramfs-virt"]
    assert choice.cmdline == "root=UUID=1 modules=sd-mod,usb-storage,ext4 rootfstype=ext4"
    assert "label 'virt'" in choice.source


def test_tabs_are_blanks_too() -> None:
    text = f"\tDEFAULT\tl\nLABEL\tl\n\tLINUX\t{K}\n\tAPPEND\tro\tquiet\n"
    choice = choose([tree({"boot/extlinux.conf": text, **KERNELS}, 1)])
    assert (names(choice), choice.cmdline) == ([K], "ro quiet")
    entries = {
        "loader/entries/m-1.conf": entry("1").replace(" ", "\t", 1).replace("linux ", "linux\t"),
        "loader/entries/m-2.conf": entry("2"),
        "loader/loader.conf": "default\tm-1.conf\n",
    }
    assert names(choose(fedora(entries, "1", "2")))[0] == "/vmlinuz-1"


def test_initrd_in_append() -> None:
    text = (
        "default l\nappend common\nlabel l\nkernel /k\nlabel m\nkernel /k\nappend initrd=/i,/j x\n"
    )
    files = {"extlinux.conf": text, "k": "k", "i": "i", "j": "j"}
    assert choose([tree(files)]).cmdline == "common"
    files["extlinux.conf"] = text.replace("default l", "default m")
    choice = choose([tree(files)])
    assert (names(choice), choice.cmdline) == (["/k", "/i", "/j"], "x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("default l\nlabel l\nkernel /gone\n", "/gone isn't a file"),
        ("default l\nlabel l\nappend x\n", "/l isn't a file"),
        ("default l\nlabel l\nkernel /k\ninitrd /k" + ",/k" * 19, "20 initrds, of 16 at most"),
        ("label l\nkernel /k\n", "names nothing to boot"),
    ],
)
def test_extlinux_that_is_broken(text: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        choose([tree({"extlinux.conf": text, "k": "k"})])


def test_links() -> None:
    files = {
        "vmlinuz": Path("boot/vmlinuz-6.1.0-18-amd64"),
        "initrd.img": Path("/boot/initrd.img-6.1.0-18-amd64"),
        "etc/fstab": "",
    }
    choice = choose([tree({**files, **KERNELS}, 1, "gpt", ROOT)])
    assert names(choice) == ["/vmlinuz", "/initrd.img"]
    assert choice.cmdline == f"root=UUID={ROOT} ro"


def test_links_into_a_boot_of_its_own() -> None:
    links = {
        "vmlinuz": Path("boot/vmlinuz-6.1.0-18-amd64"),
        "initrd.img": Path("/boot/initrd.img-6.1.0-18-amd64"),
    }
    boot = tree({n.removeprefix("boot/"): c for n, c in KERNELS.items()}, 1, "gpt", BOOT)
    choice = choose([boot, tree({**links, "boot": {}, "etc/x": ""}, 2, "gpt", ROOT)])
    assert names(choice) == ["/vmlinuz-6.1.0-18-amd64", "/initrd.img-6.1.0-18-amd64"]
    assert choice.kernel.tree is boot
    assert choice.cmdline == f"root=UUID={ROOT} ro"


def test_the_order() -> None:
    bls = {"boot/loader/entries/x.conf": "linux /boot/vmlinuz-6.1.0-17-amd64\noptions bls\n"}
    config = {"boot/grub/grub.cfg": f"menuentry a {{ linux {K} grub }}"}
    extlinux = {"boot/extlinux.conf": f"default l\nlabel l\nlinux {K}\nappend extlinux\n"}
    legacy = {"boot/grub/menu.lst": f"title a\nkernel {K} legacy\n"}
    links = {"vmlinuz": Path(K), "etc/fstab": ""}
    everything = [config, legacy, bls, extlinux, links]
    said = []
    while everything:
        files = {key: value for part in everything for key, value in part.items()}
        said.append(choose([tree({**KERNELS, **files}, 1, "gpt", ROOT)]).cmdline)
        everything.pop(0)
    assert said == ["grub", "legacy", "bls", "extlinux", f"root=UUID={ROOT} ro"]


@pytest.mark.parametrize(
    "sign", ["boot/grub/i386-pc/normal.mod", "boot/grub2/grubenv", "etc/lilo.conf", "limine.conf"]
)
def test_a_menu_that_is_not_read_is_not_passed_over(sign: str) -> None:
    """Links would boot what the guest's own boot loader doesn't."""
    files = {"vmlinuz": Path(K), "etc/fstab": "", **KERNELS}
    assert "for there is no boot menu" in choose([tree(files, 1, "gpt", ROOT)]).source
    with pytest.raises(Unreadable, match="no boot menu that can be read; /"):
        choose([tree({**files, sign: "x"}, 1, "gpt", ROOT)])


def test_links_without_a_command_line_are_refused() -> None:
    with pytest.raises(Unreadable, match="nothing says which command line /vmlinuz"):
        choose([tree({"vmlinuz": Path(K), **KERNELS}, 1, "gpt", ROOT)])


def test_nothing() -> None:
    with pytest.raises(Unreadable, match=r"no boot menu and no kernel .* partition 1 \(memory\)"):
        choose([tree({"etc/x": ""}, 1)])
    with pytest.raises(Unreadable, match="nothing readable"):
        choose([])


def test_a_configuration_that_is_too_large() -> None:
    with pytest.raises(Unreadable, match="larger than"):
        choose([tree({"boot/grub/grub.cfg": "#" * (1024**2 + 1)})])
