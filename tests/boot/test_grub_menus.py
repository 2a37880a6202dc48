"""What GRUB chooses in its menus, on the disks that they are on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.boot.memory import tree
from tests.boot.mkconfig import HEADER
from vmcloner_boot.choice import Choice
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.loaders import choose as choose_within
from vmcloner_boot.trees import Tree

UUIDS = [f"{n}1111111-2222-4333-8444-555555555555" for n in range(4)]
KERNELS: dict[str, object] = {f"boot/{name}": name for name in ("k1", "k2", "k3", "i1", "i2")}
BOTH = (
    "menuentry One --id one { linux /boot/k1 1; }\nmenuentry Two --id two { linux /boot/k2 2; }\n"
)


def grubenv(**values: str) -> str:
    lines = "".join(f"{key}={value}\n" for key, value in values.items())
    return f"# GRUB Environment Block\n{lines}".ljust(1024, "#")


def choose(*trees: Tree) -> Choice:
    return choose_within(trees, Budget())


def menu(config: str, more: Mapping[str, object] | None = None) -> Choice:
    files = {"boot/grub/grub.cfg": config, **KERNELS, **(more or {})}
    return choose(tree(files, 1, "gpt", UUIDS[0]))


# --- the default, and what is fallen back to -----------------------------------------------------


@pytest.mark.parametrize(
    ("default", "kernel"),
    [
        ("1", "/boot/k2"), ("two", "/boot/k2"), ("Two", "/boot/k2"), ("7", "/boot/k1"),
        ("none", "/boot/k1"), ("more>1", "/boot/k3"), ("2>b", "/boot/k3"),
        ("More>>>B>>C", "/boot/k1"),
        ("0x1", "/boot/k2"),
        ("01>0", "/boot/k2"),
        ("1 0", "/boot/k2"),
        ("more>B>>C", "/boot/k3"), ("2", "/boot/k1"), ("more>7", "/boot/k1"),
    ],
)  # fmt: skip
def test_the_default(default: str, kernel: str) -> None:
    more = (
        "submenu More --id more {\nmenuentry A { linux /boot/k1; }\n"
        "menuentry 'B>C' --id b { linux /boot/k3; }\n}\n"
    )
    assert menu(f"set default='{default}'\n{BOTH}{more}").kernel.path == kernel


@pytest.mark.parametrize("default", ["1 of them", "1x", "0"])
def test_a_default_that_kinds_of_grub_read_in_two_ways(default: str) -> None:
    """Debian's takes the number that it begins with, Fedora's the title."""
    entries = f"{BOTH}menuentry '1 of them' {{ linux /boot/k3; }}\n"
    with pytest.raises(Unreadable, match="may be a number or a name"):
        menu(f"set default='{default}'\n{entries}menuentry 0 {{ linux /boot/k3; }}")


def test_a_failing_submenu_falls_back_to_an_entry_beside_it() -> None:
    config = (
        "set fallback=1\nsubmenu S {\nmenuentry Bad { linux /gone; }\n}\n"
        "menuentry Good { linux /boot/k2; }"
    )
    choice = menu(config)
    assert choice.kernel.path == "/boot/k2"
    assert "for entry 'S' fails (/gone isn't a file" in choice.source
    with pytest.raises(Unreadable, match="/gone isn't a file"):
        menu(config.replace("fallback=1", "fallback="))


def test_a_submenu_has_a_context_of_its_own() -> None:
    """Only what is exported is seen there, and its own default counts."""
    config = (
        "set a=1\nset b=2\nexport b\nset default=0\n"
        "submenu S {\nset default=1\nmenuentry A { linux /boot/k1; }\n"
        "menuentry B { linux /boot/k2 .$a.$b.; }\n}"
    )
    assert menu(config).cmdline == "..2."


def test_arguments_of_an_entry() -> None:
    config = "menuentry 'A title' one 'two three' { linux /boot/k1 $# $1 $2 \"$3\" $chosen; }"
    assert menu(config).cmdline == '3 A title one "two three" A title'


@pytest.mark.parametrize("fallback", ["1", "two", "Two", "1 0"])
def test_fallback(fallback: str) -> None:
    bad = "menuentry Bad { linux /boot/gone; initrd /boot/i1; }\n"
    second = "menuentry Two --id two { linux /boot/k2; }\n"
    choice = menu(f"set fallback='{fallback}'\n{bad}{second}")
    assert choice.kernel.path == "/boot/k2"
    assert "for entry 'Bad' fails (/boot/gone isn't a file on partition 1)" in choice.source


def test_without_a_fallback_that_boots_it_is_an_error() -> None:
    bad = "menuentry Bad { linux /boot/gone; }\nmenuentry Worse { linux (hd3,1)/k; }\n"
    for fallback in ("", "1", "9"):
        with pytest.raises(Unreadable, match="/boot/gone isn't a file on partition 1"):
            menu(f"set fallback={fallback}\n{bad}")


def test_an_initrd_that_is_not_there_is_left_out_and_said() -> None:
    """So does GRUB: it reports the error, and boots what is loaded."""
    choice = menu("menuentry A { linux /boot/k1 x; initrd /boot/i1 /boot/gone; }")
    assert (choice.kernel.path, choice.initrds, choice.cmdline) == ("/boot/k1", (), "x")
    assert "without its initrd: /boot/gone isn't there" in choice.source


def test_the_last_kernel_counts_without_the_initrd_of_the_first() -> None:
    choice = menu("menuentry A { linux /boot/k1; initrd /boot/i1; linux /boot/k2; }")
    assert (choice.kernel.path, choice.initrds) == ("/boot/k2", ())


def test_conditions_on_commands_that_fail() -> None:
    config = (
        "menuentry A { if linux /boot/gone; then true; else linux /boot/k2; fi;"
        " if initrd /boot/none; then true; else initrd /boot/i2; fi; }"
    )
    choice = menu(config)
    assert choice.kernel.path == "/boot/k2"
    assert [found.path for found in choice.initrds] == ["/boot/i2"]


def test_a_kernel_without_boot_is_not_booted() -> None:
    with pytest.raises(Unreadable, match="on partition 1: it has no entry"):
        menu("linux /boot/k1\ninitrd /boot/i1\n")


def test_firmware_is_no_kernel() -> None:
    with pytest.raises(Unreadable, match="starts fwsetup"):
        menu("menuentry Setup { fwsetup; }")


# --- other files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        "menuentry X { configfile /boot/other.cfg; }",
        "configfile ($root)/boot/other.cfg",
        "set default=1\nmenuentry A { true; }\nmenuentry B { configfile /boot/other.cfg; }",
        "submenu S { configfile /boot/other.cfg; }",
        "function go { source /boot/other.cfg; }\ngo",
    ],
)
def test_a_menu_in_another_file(config: str) -> None:
    choice = menu(config, {"boot/other.cfg": f"set default=two\n{BOTH}"})
    assert choice.kernel.path == "/boot/k2"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(Unreadable, match="isn't a file on partition 1"):
        menu("configfile /boot/other.cfg")
    assert menu(f"source /boot/other.cfg\n. /none\n{BOTH}").kernel.path == "/boot/k1"


def test_a_variable_from_a_file() -> None:
    config = "file_env -f ($root)/cmdline.txt more\nmenuentry A { linux /boot/k1 a $more b; }"
    assert menu(config, {"cmdline.txt": "x=1 y\n"}).cmdline == "a x=1 y b"
    assert menu(config).cmdline == "a b"


def test_menus_that_lead_in_a_circle() -> None:
    with pytest.raises(Unreadable, match="16 menus within one another"):
        menu("menuentry A { configfile /boot/grub/grub.cfg; }")


@pytest.mark.parametrize(
    ("words", "cmdline"),
    [
        ("", "1.2"), ("b", ".2"), ("--file ($root)/boot/env a", "3."), ("-f /boot/env", "3."),
        ("-f env b", ".9"), ("--skip-sig a", "1."), ("--file /none", "."), ("-f /boot/bad", "."),
    ],
)  # fmt: skip
def test_environment(words: str, cmdline: str) -> None:
    files = {
        "boot/grub/grubenv": grubenv(a="1", b="2"),
        "boot/grub/env": grubenv(b="9"),
        "boot/env": grubenv(a="3"),
        "boot/bad": "a=7\n",
    }
    config = f'load_env {words}\nmenuentry X {{ linux /boot/k1 "$a.$b"; }}'
    assert menu(config, files).cmdline == cmdline


def test_what_counts_once_is_not_taken_over() -> None:
    files = {"boot/grub/grubenv": grubenv(saved_entry="two", prev_saved_entry="one")}
    config = 'load_env\nset default="$saved_entry"\n' + BOTH
    assert menu(config, files).kernel.path == "/boot/k1"


# --- devices -------------------------------------------------------------------------------------


def disk() -> list[Tree]:
    first = tree({"boot/k1": "1", "here": ""}, 1, "msdos", UUIDS[1])
    second = tree({"k2": "2", "here": ""}, 2, "msdos", UUIDS[2])
    second.system.label = "DATA"
    return [first, second]


@pytest.mark.parametrize(
    "search",
    [
        f"search --fs-uuid --set=r {UUIDS[2].upper()}", f"search -us r {UUIDS[2]}",
        f"search -u {UUIDS[2]} -s r", "search -l DATA -s r", "search --set r --label DATA",
        "search -nls r DATA", "search --label --hint hd0,msdos1 DATA --set=r",
        "search -f /k2 -s r", "search.fs_label DATA r", "search.file /k2 r hd0,msdos1",
        f"search.fs_uuid {UUIDS[2]} r", "search --file /here --hint hd0,msdos2 --set=r",
        "search --hint-bios=hd0,msdos2 --set=r --file /here", "set r=(hd0,2)", "set r=hd0,msdos2",
        "regexp --set=1:d '([^,]*),.*' $root; set r=$d,msdos2",
    ],
)  # fmt: skip
def test_devices(search: str) -> None:
    trees = disk()
    config = f"{search}\nset root=$r\nmenuentry X {{ linux /k2 y; }}"
    boot = tree({"grub/grub.cfg": config}, 3, "msdos", UUIDS[3])
    assert str(choose(boot, *trees).kernel) == "/k2 on partition 2"


@pytest.mark.parametrize(
    "search",
    ["search --label DATA", "search --set=r --label OTHER", f"search {UUIDS[2]} --set=r",
     "search --set=r --file /none"],
)  # fmt: skip
def test_a_search_that_finds_nothing_sets_nothing(search: str) -> None:
    config = f"set r=hd0,1\n{search}\nmenuentry X {{ linux ($r)/boot/k1 $root; }}"
    boot = tree({"grub/grub.cfg": config}, 3, "msdos", UUIDS[3])
    choice = choose(boot, *disk())
    assert (str(choice.kernel), choice.cmdline) == ("/boot/k1 on partition 1", "hd0,msdos3")


def test_a_search_that_other_grubs_know_is_refused() -> None:
    with pytest.raises(Unreadable, match="search --part-label isn't understood"):
        menu(f"search --set=root --part-label boot\n{BOTH}")


@pytest.mark.parametrize(
    ("asked", "value"),
    [("--fs-uuid", UUIDS[2]), ("-u", UUIDS[2]), ("-l", "DATA"), ("--partmap", "msdos"),
     ("--driver", "biosdisk"), ("--part-uuid", "cafe-02")],
)  # fmt: skip
def test_probe(asked: str, value: str) -> None:
    first, second = disk()
    second = Tree(second.system, second.place, 2, "msdos", "cafe-02")
    for device in ("(hd0,msdos2)", "hd0,2"):
        config = f"probe --set=v {asked} {device}\nmenuentry X {{ linux (hd0,1)/boot/k1 $v; }}"
        boot = tree({"grub/grub.cfg": config}, 3, "msdos", UUIDS[3])
        assert choose(boot, first, second).cmdline == value


# --- the EFI system partition, and subvolumes ----------------------------------------------------


def test_the_configuration_on_the_efi_system_partition() -> None:
    """A menu there counts where there is none in /boot; its folder is the prefix."""
    config = (
        "load_env\nset default=$saved_entry\n"
        f"search --fs-uuid --set=root {UUIDS[1]}\n"
        "menuentry A --id a { linux /k1 $grub_platform; }\nmenuentry B --id b { linux /k2; }"
    )
    files = {"EFI/vendor/grub.cfg": config, "EFI/vendor/grubenv": grubenv(saved_entry="b")}
    system = tree({**files, "EFI/BOOT/grub.cfg": "menuentry No { true; }"}, 1, "gpt", UUIDS[0])
    boot = tree({"k1": "1", "k2": "2"}, 2, "gpt", UUIDS[1])
    assert str(choose(system, boot).kernel) == "/k2 on partition 2"
    stub = (
        "search --fs-uuid --set=dev {}\nset prefix=($dev)/grub2\nexport prefix\n"
        "configfile $prefix/{}"
    )
    system = tree({"EFI/x/grub.cfg": stub.format(UUIDS[1], "menu.cfg")}, 1, "gpt", UUIDS[0])
    boot = tree(
        {"grub2/menu.cfg": "menuentry A { linux ($dev)/k1; }", "k1": ""}, 2, "gpt", UUIDS[1]
    )
    with pytest.raises(Unreadable, match="/k1"):
        choose(system, boot)  # dev isn't exported
    boot = tree(
        {"grub2/menu.cfg": "set root=hd0,2\nmenuentry A { linux /k1 $prefix; }", "k1": ""},
        2,
        "gpt",
        UUIDS[1],
    )
    assert choose(system, boot).cmdline == "(hd0,gpt2)/grub2"


def subvolumes(config: str, name: str = "@system", *, default: bool = False) -> Sequence[Tree]:
    """Return a btrfs with a root file system in a subvolume, seen from the top and by itself."""
    root = {
        "boot/grub/grub.cfg": config,
        "boot/grub/grubenv": grubenv(saved_entry="b"),
        "boot/k1": "1",
        "boot/k2": "2",
    }
    top = tree({f"{name}/{path}": content for path, content in root.items()}, 1, "gpt", UUIDS[0])
    own = tree(root, 1, "gpt", UUIDS[0])
    place = f"{own.place}, subvolume {name}"
    return [top, Tree(own.system, place, 1, "gpt", "", subvolume=name, default=default)]


@pytest.mark.parametrize("name", ["@", "@rootfs", "root", "volumes/any.name"])
def test_paths_from_the_top_level_of_btrfs(name: str) -> None:
    config = (
        "if [ -s $prefix/grubenv ]; then load_env; fi\nset default=$saved_entry\n"
        f"menuentry A --id a {{ linux '/{name}/boot/k1'; }}\n"
        f"menuentry B --id b {{ linux '/{name}/boot/k2' $prefix; }}"
    )
    choice = choose(*subvolumes(config, name))
    assert choice.kernel.path == f"/{name}/boot/k2"
    assert choice.cmdline == f"(hd0,gpt1)/{name}/boot/grub"


def test_several_subvolumes_with_menus() -> None:
    config = "menuentry A { linux /@new/boot/k1; }"
    one, two = (list(subvolumes(config, name)) for name in ("@new", "@old"))
    with pytest.raises(Unreadable, match="@old both have a menu of GRUB's"):
        choose(one[0], one[1], two[1])
    two = list(subvolumes(config, "snapshots/2"))
    assert choose(one[0], one[1], two[1]).kernel.path == "/@new/boot/k1"


def test_paths_from_the_default_subvolume_of_btrfs() -> None:
    """openSUSE's GRUB has a variable for that."""
    config = (
        "set btrfs_relative_path=yes\nload_env\nset default=$saved_entry\n"
        "btrfs-mount-subvol ($root) /boot/grub2/i386-pc @/boot/grub2/i386-pc\n"
        "menuentry A --id a { linux /boot/k1; }\nmenuentry B --id b { linux /boot/k2; }"
    )
    choice = choose(*subvolumes(config, "@/.snapshots/1/snapshot", default=True))
    assert choice.kernel.path == "/boot/k2"


# --- Boot Loader Specification -------------------------------------------------------------------


def bls(config: str, entries: Mapping[str, str], **env: str) -> Choice:
    files: dict[str, object] = {f"loader/entries/{n}.conf": text for n, text in entries.items()}
    files |= {"grub2/grub.cfg": config, "grub2/grubenv": grubenv(**env)}
    files |= {name: name for name in ("k1", "k2", "i1", "i2", "tuned.img", "early.img")}
    return choose(tree(files, 1, "gpt", UUIDS[0]))


NEW, OLD = "m-6.10.1-1.fc40", "m-6.9.12-1.fc40"
ENTRIES = {
    OLD: "title Old\nversion 6.9.12\nlinux /k1\ninitrd /i1 $tuned_initrd\n"
    "options ro $tuned_params\n",
    NEW: "title New\nversion 6.10.1\nlinux /k2\ninitrd /i2\noptions $kernelopts\n",
}
PLAIN = "load_env\nset default=$saved_entry\nblscfg\n"


def test_entries_count_where_the_menu_says_so() -> None:
    assert bls(PLAIN, ENTRIES).kernel.path == "/k2"
    own = "menuentry Own { linux /k1; }"
    assert bls(own, ENTRIES).kernel.path == "/k1"
    assert "'Own'" in bls(f"{own}\nblscfg", ENTRIES).source
    assert "'New'" in bls(f"blscfg\n{own}", ENTRIES).source


def test_variables_of_entries() -> None:
    env = {"tuned_params": "a=1 b='2 3'", "tuned_initrd": "/tuned.img", "kernelopts": "x"}
    choice = bls(PLAIN, ENTRIES, saved_entry=OLD, **env)
    assert choice.cmdline == 'ro a=1 "b=2 3"'
    assert [found.path for found in choice.initrds] == ["/i1", "/tuned.img"]
    assert [found.path for found in bls(PLAIN, ENTRIES, saved_entry=OLD).initrds] == ["/i1"]
    assert bls(PLAIN, ENTRIES, **env).cmdline == "x"
    config = "set early_initrd='early.img'\nblscfg"
    assert [f.path for f in bls(config, ENTRIES).initrds] == ["/early.img", "/i2"]
    config = "set default_kernelopts='root=/dev/vda1 quiet'\nblscfg"
    assert bls(config, {"a-1": "linux /k1\n"}).cmdline == "root=/dev/vda1 quiet"


@pytest.mark.parametrize(
    ("options", "cmdline"),
    [
        ('a="b c" d', '"a=b c" d'), ("a='b c'", '"a=b c"'), (r"a=\"b\"", r"a=\"b\""),
        ("a  b\tc", "a b c"), ("$none a", "a"), ("a # b", "a"), ("a=${v}x", "a=1x"),
    ],
)  # fmt: skip
def test_options_are_read_as_script(options: str, cmdline: str) -> None:
    found = bls("set v=1\nblscfg", {"a-1": f"linux /k1\noptions {options}\n"})
    assert found.cmdline == cmdline


def test_an_option_that_is_another_command_is_refused() -> None:
    with pytest.raises(Unreadable, match="its command 'b'"):
        bls("blscfg", {"a-1": "linux /k1\noptions a;b\n"})


def test_entries_without_a_kernel_are_passed_over() -> None:
    """They have no number either."""
    more = {**ENTRIES, "z-memtest": "title Test\nefi /EFI/memtest.efi\n"}
    assert bls(PLAIN, more).kernel.path == "/k2"
    assert bls(PLAIN, more, saved_entry="1").kernel.path == "/k1"


def test_other_folders_of_entries() -> None:
    entry = {"other/a-1.conf": "linux /k1\n", "k1": "", "loader/entries/b-1.conf": "linux /k1 no\n"}
    for config in ("set blsdir=/other\nblscfg", "blscfg (hd0,gpt1)/other"):
        boot = tree({"grub2/grub.cfg": config, **entry}, 1, "gpt", UUIDS[0])
        assert "'/k1'" in choose(boot).source
    config = f"search --set=boot --fs-uuid {UUIDS[1]}\nblscfg"
    home = tree({"grub2/grub.cfg": config}, 1, "gpt", UUIDS[0])
    boot = tree({"boot/loader/entries/a-1.conf": "linux /boot/k1\n", **KERNELS}, 2, "gpt", UUIDS[1])
    assert str(choose(home, boot).kernel) == "/boot/k1 on partition 2"


def test_the_order_of_versions() -> None:
    names = ["m-6.9.12-1", "m-6.10.1-1", "m-6.10.1-10", "m-6.10.1-9", "a-9.9-1", "m-6.10.1~rc2-99"]
    entries = {name: f"title {name}\nlinux /k1\n" for name in names}
    found = []
    while entries:
        title = bls("blscfg", entries).source.split("'")[1]
        found.append(title)
        del entries[title]
    assert found == [
        "m-6.10.1-10", "m-6.10.1-9", "m-6.10.1-1", "m-6.10.1~rc2-99", "m-6.9.12-1", "a-9.9-1"
    ]  # fmt: skip


def systemd_boot(entries: Mapping[str, str], loader: str = "") -> Choice:
    files: dict[str, object] = {f"loader/entries/{n}.conf": text for n, text in entries.items()}
    files |= {"loader/loader.conf": loader, "k1": "", "k2": ""}
    return choose(tree(files, 1, "gpt", UUIDS[0]))


def test_the_last_default_counts_and_is_bounded() -> None:
    """As systemd-boot reads it; a file with a hundred thousand of them isn't tried one by one."""
    entries = {"a": "linux /k1\n", "b": "linux /k2\n"}
    assert systemd_boot(entries, "default a\ndefault b\n").kernel.path == "/k2"
    assert systemd_boot(entries, "default a\n" * 90_000 + "default b").kernel.path == "/k2"
    with pytest.raises(Unreadable, match="more than 255 characters"):
        systemd_boot(entries, "default " + "*a" * 200)


def test_variables_of_an_entry_fill_in_no_gigabytes() -> None:
    config = f"set v={'x' * 16_000}\nblscfg"
    with pytest.raises(Unreadable, match="more than 65536 characters"):
        bls(config, {"a-1": f"linux /k1\noptions {'$v' * 30_000}\n"})


def test_entries_without_tries_come_last() -> None:
    text = {"new": "version 2\nlinux /k2\n", "old": "version 1\nlinux /k1\n"}
    for new, old, kernel in [
        ("m-2+0-3", "m-1+3-0", "/k1"), ("m-2+1-2", "m-1+3", "/k2"), ("m-2+0-3", "m-1+0-1", "/k2"),
        ("m-2+0-3", "m-1", "/k1"), ("m-2+00", "m-1", "/k1"),
    ]:  # fmt: skip
        assert systemd_boot({new: text["new"], old: text["old"]}).kernel.path == kernel


def test_entries_of_another_architecture() -> None:
    entries = {"m-2": "linux /k2\narchitecture aa64\n", "m-1": "linux /k1\narchitecture X64\n"}
    assert systemd_boot(entries).kernel.path == "/k1"


@pytest.mark.parametrize(
    ("entries", "loader", "reason"),
    [
        ({"m-1": "title T\nefi /x.efi\n"}, "", "its entry 'T' names no kernel"),
        ({"m-1": "linux /k1\noptions $kernelopts\n"}, "", "has variables of GRUB"),
        ({"m-1": "linux /k1\n"}, "default @saved\n", "only the firmware knows"),
        ({"m-1": "linux /gone\n"}, "", "/gone isn't a file"),
    ],
)
def test_entries_that_cannot_be_booted(
    entries: Mapping[str, str], loader: str, reason: str
) -> None:
    with pytest.raises(Unreadable) as caught:
        systemd_boot(entries, loader)
    assert reason in str(caught.value)


@pytest.mark.parametrize("sign", ["grub2/grubenv", "boot/grub/i386-pc/x.mod"])
def test_entries_beside_a_grub_without_a_menu(sign: str) -> None:
    files = {"loader/entries/a.conf": "linux /k1\n", "k1": "", sign: grubenv(saved_entry="b")}
    with pytest.raises(Unreadable, match=r"no boot menu that can be read; /.*grub"):
        choose(tree(files, 1, "gpt", UUIDS[0]))


def test_a_unified_kernel_image_may_be_what_is_booted() -> None:
    files = {"loader/entries/a.conf": "linux /k1\n", "k1": "", "EFI/Linux/x.efi": ""}
    with pytest.raises(Unreadable, match="unified kernel image"):
        choose(tree(files, 1, "gpt", UUIDS[0]))
    files["loader/loader.conf"] = "default a.conf"
    assert choose(tree(files, 1, "gpt", UUIDS[0])).kernel.path == "/k1"


def test_links_are_followed_in_loader_folders() -> None:
    files = {"loader": Path("loader.1"), "loader.1/entries/a.conf": "linux /k1\n", "k1": ""}
    files["grub2/grub.cfg"] = "blscfg"
    assert choose(tree(files, 1, "gpt", UUIDS[0])).kernel.path == "/k1"


# --- menus in the manner of distributions --------------------------------------------------------

SUBMENU = """
submenu 'Advanced options' $menuentry_id_option 'advanced' {
  menuentry 'Older' --class os $menuentry_id_option 'older' {
    recordfail
    load_video
    gfxmode $linux_gfx_mode
    insmod gzio
    linux  /boot/k1 root=UUID=u ro  $vt_handoff
    initrd  /boot/i1
  }
}
"""
UBUNTU = (
    HEADER.replace("DEFAULT", "${saved_entry}")
    + """
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if loadfont unicode ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  set timeout=0
fi
function gfxmode {
  set gfxpayload="${1}"
  if [ "${1}" = "keep" ]; then
    set vt_handoff=vt.handoff=7
  else
    set vt_handoff=
  fi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then
      set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then
        set linux_gfx_mode=keep
      else
        set linux_gfx_mode=text
      fi
    else
      set linux_gfx_mode=text
    fi
  else
    set linux_gfx_mode=keep
  fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
menuentry 'Newer' --class os $menuentry_id_option 'newer' {
  recordfail
  gfxmode $linux_gfx_mode
  if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
  set root='hd0,gpt1'
  if [ x$feature_platform_search_hint = xy ]; then
    search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 UUID0
  else
    search --no-floppy --fs-uuid --set=root UUID0
  fi
  linux  /boot/k2 root=UUID=u ro  $vt_handoff
  initrd  /boot/i2
}
"""
    + SUBMENU
    + """
if [ "$grub_platform" = "efi" ]; then
  fwsetup --is-supported
  if [ "$?" = 0 ]; then
    menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
      fwsetup
    }
  fi
fi
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"""
).replace("UUID0", UUIDS[0])


@pytest.mark.parametrize(
    ("env", "kernel", "cmdline"),
    [
        ({}, "/boot/k2", "root=UUID=u ro vt.handoff=7"),
        ({"saved_entry": "advanced>older"}, "/boot/k1", "root=UUID=u ro vt.handoff=7"),
        ({"saved_entry": "1>0", "recordfail": "1"}, "/boot/k1", "root=UUID=u ro"),
        ({"next_entry": "older"}, "/boot/k2", "root=UUID=u ro vt.handoff=7"),
    ],
)
def test_in_the_manner_of_ubuntu(env: Mapping[str, str], kernel: str, cmdline: str) -> None:
    """Functions are known in submenus; variables only where they are exported."""
    more = {"boot/grub/grubenv": grubenv(**env), "boot/grub/gfxblacklist.txt": "x\n"}
    choice = menu(UBUNTU, more)
    assert (choice.kernel.path, choice.cmdline) == (kernel, cmdline)


SUSE = """
set btrfs_relative_path="yes"
export btrfs_relative_path
if [ -f $prefix/grubenv ]; then load_env; fi
if [ "${env_block}" ]; then
  set env_block="(${root})${env_block}"
  export env_block
  load_env -f "${env_block}"
fi
if [ x"${boot_once}" = xtrue ]; then true; else set default="${saved_entry}"; fi
if [ -z "${boot_once}" ]; then set lang=en_US; fi
menuentry 'openSUSE' --class opensuse $menuentry_id_option 'suse' {
  set root='hd0,gpt1'
  linux /boot/k1 root=UUID=u ${extra_cmdline} splash=silent
  initrd /boot/i1
}
if [ -f "/.snapshots/grub-snapshot.cfg" ]; then
  source "/.snapshots/grub-snapshot.cfg"
fi
"""


def test_in_the_manner_of_opensuse() -> None:
    name = "@/.snapshots/1/snapshot"
    trees = list(subvolumes(SUSE, name, default=True))
    assert choose(*trees).kernel.path == "/boot/k1"
    assert choose(*trees).cmdline == "root=UUID=u splash=silent"
    assert "without its initrd" in choose(*trees).source  # that disk has none
