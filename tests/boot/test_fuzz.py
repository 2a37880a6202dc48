"""Boot menus of random commands: an answer or an error of ours (see also tests/fuzz).

A short slice runs with the other tests; ``VMCLONER_FUZZ=100000`` makes it a long one.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.boot.memory import tree
from vmcloner_boot.disk_image import Budget
from vmcloner_boot.loaders import choose
from vmcloner_boot.trees import Tree
from vmcloner_core.errors import VmclonerError

EXAMPLES = int(os.environ.get("VMCLONER_FUZZ", "60"))
slice_of_fuzz = settings(
    max_examples=EXAMPLES, deadline=2000, suppress_health_check=[HealthCheck.too_slow]
)


def boots(trees: Sequence[Tree]) -> None:
    """Ask what is booted. A file that is chosen is one of these file systems."""
    try:
        choice = choose(trees, Budget(left=64 * 1024**2, deadline=time.monotonic() + 2))
    except VmclonerError as error:
        assert str(error).isprintable()
        return
    for found in (choice.kernel, *choice.initrds):
        assert found.tree in trees
        assert found.tree.file(found.path) == found.node
    assert choice.source.isprintable()


# --- menus ----------------------------------------------------------------------------------------

COMMANDS = """
    . [ background_image blscfg boot break btrfs-mount-subvol cat chainloader configfile continue
    cpuid decrement default echo eval exit export fallback file_env function fwsetup halt hwmatch
    increment initrd insmod keystatus linux linuxefi load_env loopback ls menuentry multiboot probe
    regexp return save_env search search.fs_uuid set setparams shift source submenu test true uki
    unset
"""
WORDS = """
    /k /boot/k ($root)/k (hd0,gpt1)/k (hd0)/ (hd9,1)/x /boot/grub/grub.cfg /other.cfg $prefix/x
    /* (*)/* /boot/* ../../../etc/passwd /link /loop/x a=b a=$a$a default=1 root=(hd0,1) $a $@ $* $#
    $? "$a" '' 0 1 9999999999 -f -s -u -l --set --set=a --set=root --file --label --fs-uuid --hint
    -a -o ! ( ) = -eq -plt -e -d -n -z (a*)*b [[:alpha:]]+ {2,3} \\* --id --class
"""
WORD = st.sampled_from(WORDS.split()) | st.sampled_from(["\x1b[31m", '"a b"']) | st.text(max_size=6)
LINE = st.tuples(st.sampled_from(COMMANDS.split()), st.lists(WORD, max_size=5).map(" ".join)).map(
    " ".join
)
BLOCK = st.lists(LINE, min_size=1, max_size=4).map("; ".join)
PART = (
    LINE
    | BLOCK.map(lambda b: f"menuentry 'x' a --id i {{ {b}; }}")
    | BLOCK.map(lambda b: f"submenu y {{ {b}; }}")
    | BLOCK.map(lambda b: f"function f {{ {b}; }}\nf 1 2")
    | BLOCK.map(lambda b: f"for a in 1 /boot/*; do {b}; done")
    | BLOCK.map(lambda b: f"if {b}; then {b}; else {b}; fi")
    | BLOCK.map(lambda b: f"while {b}; do {b}; done")
)
SCRIPT = st.lists(PART, max_size=6).map("\n".join) | st.text(max_size=60)
ENTRY = st.lists(
    st.tuples(
        st.sampled_from(["title", "linux", "initrd", "options", "version", "sort-key", "efi"]), WORD
    ).map(" ".join),
    max_size=6,
).map("\n".join)
LEGACY = st.lists(
    st.tuples(
        st.sampled_from(
            ["default", "fallback", "title", "root", "kernel", "initrd", "configfile", "uuid",
             "find --set-root", "timeout", "module", "boot", "\\"]
        ),
        WORD | st.sampled_from(["(hd0,0)", "(hd0)", "saved", "/boot/grub/menu.lst"]),
    ).map(" ".join),
    max_size=10,
).map("\n".join)  # fmt: skip


@slice_of_fuzz
@given(SCRIPT, SCRIPT, ENTRY, LEGACY, st.text(max_size=40), st.integers(0, 3))
def test_menus(script: str, other: str, entry: str, legacy: str, env: str, without: int) -> None:
    files: dict[str, object] = {
        "boot/grub/grub.cfg": script,
        "boot/grub/menu.lst": legacy,
        "loader/entries/m-1+1.conf": entry,
        "loader/entries/m-2.conf": f"linux /k\n{entry}",
        "loader/loader.conf": env,
    }
    for name in list(files)[:without]:
        del files[name]
    files |= {"other.cfg": other, "k": "k", "boot/k": "k", "link": Path("/etc/passwd")}
    files |= {"loop": Path("loop"), "boot/grub/grubenv": f"# GRUB Environment Block\n{env}"}
    boots([tree(files, 1, "gpt", "11111111-2222-4333-8444-555555555555"), tree({}, 2, "gpt")])
