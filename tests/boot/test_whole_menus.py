"""Menus as grub-mkconfig makes them for several distributions, beside the real GRUB and pygrub."""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.disks import disk, ext
from tests.boot.mkconfig import HEADER
from vmcloner_boot.choice import Choice
from vmcloner_boot.disk_image import Budget, Unreadable, open_image
from vmcloner_boot.loaders import choose
from vmcloner_boot.systems import systems

pytestmark = pytest.mark.others

UUID = "11111111-2222-4333-8444-555555555555"
XEN = Path(__file__).parents[2] / ".venv/unpacked/usr/lib"
SECONDS = 60
LOADERS = """
function linux {
  echo "@kernel"
  for word in "$@"; do echo "[$word]"; done
  [ -f "$1" ]
}
function initrd { echo "@initrds"; for word in "$@"; do echo "[$word]"; done; }
function linux16 { linux "$@"; }
function linuxefi { linux "$@"; }
function initrd16 { initrd "$@"; }
function initrdefi { initrd "$@"; }
set root=hd0,gpt1
set prefix=(hd0,gpt1)%s
configfile $prefix/grub.cfg
"""
ENDS = ("need to load the kernel first", "Failed to boot both", "Press any key", "grub rescue>")


def emulated(path: Path, folder: Path, prefix: str) -> str:
    """Return what GRUB says when it boots a disk, without blanks."""
    (folder / "map").write_text(f"(hd0) {path}\n")
    (folder / "grub.cfg").write_text(LOADERS % prefix)
    argv = ["grub-emu", "-m", folder / "map", "-d", folder, "-r", "host"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={"TERM": "dumb", "COLUMNS": "200"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said, until = "", time.monotonic() + SECONDS
        while not any(end in said for end in ENDS) and time.monotonic() < until:
            if select.select([process.stdout], [], [], 1)[0]:
                got = os.read(process.stdout.fileno(), 65536)
                if not got:
                    break
                said += got.decode(errors="replace")
        process.kill()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", said)
    return "".join(said.split())


def booted(said: str) -> tuple[str, str, str] | None:
    """Return the kernel, command line and initrds that GRUB was told to load last."""
    kernels = said.split("@kernel")[1:]
    if not kernels:
        return None
    words, _, rest = kernels[-1].partition("@initrds")
    kernel, *arguments = re.findall(r"\[(.*?)\]", words)
    return kernel, "".join(arguments), "".join(re.findall(r"\[(.*?)\]", rest))


def ours(path: Path) -> Choice:
    image = open_image(path, "raw", Budget())
    try:
        return choose(systems(image)[0], Budget())
    finally:
        image.close()


TOP = (
    HEADER
    + """
if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
  set prev_saved_entry=
  save_env prev_saved_entry
  set boot_once=true
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
    insmod video_bochs
  fi
}
terminal_output console
if [ x$feature_timeout_style = xy ] ; then
  set timeout_style=menu
  set timeout=0
else
  set timeout=0
fi
"""
)
RECORDFAIL = """
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
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
    set linux_gfx_mode=text
  else
    set linux_gfx_mode=keep
  fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
"""
AUTO_HIDE = """
if [ "${boot_success}" = "1" -o "${boot_indeterminate}" = "1" ]; then
  set last_boot_ok=1
else
  set last_boot_ok=0
fi
if [ "${boot_indeterminate}" = "1" ]; then
  set boot_indeterminate=2
else
  set boot_success=0
  save_env boot_success boot_indeterminate
fi
if [ x$feature_timeout_style = xy ] ; then
  if [ "${menu_show_once}" ]; then
    unset menu_show_once
    save_env menu_show_once
    set timeout_style=menu
    set timeout=0
  elif [ "${menu_auto_hide}" -a "${last_boot_ok}" = "1" ]; then
    set timeout_style=hidden
    set timeout=0
  fi
fi
"""
CUSTOM = """
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"""
SUSE = """
set btrfs_relative_path="yes"
export btrfs_relative_path
if [ "${env_block}" ]; then
  set env_block="(${root})${env_block}"
  export env_block
  load_env -f "${env_block}"
fi
if [ -z "${boot_once}" ]; then
  set lang=en_US
  set locale_dir=$prefix/locale
fi
function setup_console { true; }
"""
SEARCH = """
  set root='hd0,gpt1'
  if [ x$feature_platform_search_hint = xy ]; then
    search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint='hd0,gpt1'  UUID
  else
    search --no-floppy --fs-uuid --set=root UUID
  fi
""".replace("UUID", UUID)
VERSIONS = ("6.1", "5.10")
FILES = ("early.img", "mine", *(f"{kind}-{v}" for v in VERSIONS for kind in ("vmlinuz", "initrd")))
STYLES = {
    # prefix, what stands before the entries, a line of each entry, the kernel's command, its words
    "debian": ("/boot/grub", "", "load_video\n\tinsmod gzio", "linux", "ro  quiet"),
    "ubuntu": ("/boot/grub", RECORDFAIL, "recordfail\n\tload_video\n\tgfxmode $linux_gfx_mode",
               "linux", "ro  quiet splash $vt_handoff"),
    "fedora": ("/boot/grub2", AUTO_HIDE, "load_video\n\tset gfxpayload=keep", "linux",
               "ro rd.lvm.lv=fedora/root rhgb ${tuned_params}"),
    "rhel7": ("/boot/grub2", "", "load_video\n\tset gfxpayload=keep\n\tsavedefault", "linux16",
              "ro crashkernel=auto LANG=en_US.UTF-8"),
    "opensuse": ("/boot/grub2", SUSE, "load_video", "linux", "${extra_cmdline} splash=silent"),
    "arch": ("/boot/grub", "", "load_video\n\tset gfxpayload=keep", "linux", "rw  loglevel=3"),
}  # fmt: skip


def entry(style: str, title: str, name: str, version: str) -> str:
    _, _, line, command, words = STYLES[style]
    load = command.replace("linux", "initrd")
    return f"""
menuentry '{title}' --class {style} --class gnu-linux --class os $menuentry_id_option '{name}' {{
	{line}
	insmod part_gpt
	insmod ext2{SEARCH}
	echo	'Loading Linux {version} ...'
	{command}	/boot/vmlinuz-{version} root=UUID={UUID} {words}
	{load}	/boot/early.img /boot/initrd-{version}
}}
"""


def menu(style: str, default: str, nested: bool) -> str:
    """Return a menu as a distribution's grub-mkconfig makes it."""
    _, before, *_ = STYLES[style]
    simple = entry(style, f"{style.title()} Linux", f"gnulinux-simple-{UUID}", VERSIONS[0])
    advanced = "".join(
        entry(style, f"{style.title()}, with Linux {version}{mode}", f"gnulinux-{version}-{kind}",
              version)
        for version in VERSIONS for mode, kind in (("", "advanced"), (" (recovery)", "recovery"))
    )  # fmt: skip
    head = f"submenu 'Advanced options' $menuentry_id_option 'gnulinux-advanced-{UUID}'"
    more = f"{head} {{{advanced}}}\n" if nested else advanced
    return TOP.replace("DEFAULT", default) + before + simple + more + CUSTOM


NAMES = ["0", "1", "2", "1>0", "1>1", "1>2", "gnulinux-6.1-advanced", "Advanced options>0",
         f"gnulinux-advanced-{UUID}>gnulinux-5.10-advanced", "gnulinux-5.10-recovery", "mine",
         "Debian Linux", "Debian, with Linux 6.1", "1>gnulinux-6.1-recovery", "9", "none", "3",
         f"gnulinux-advanced-{UUID}"]  # fmt: skip
ENVIRONMENT = st.fixed_dictionaries(
    {},
    optional={
        "saved_entry": st.sampled_from(NAMES), "recordfail": st.just("1"),
        "boot_success": st.sampled_from("01"), "menu_auto_hide": st.just("1"),
        "menu_show_once": st.just("1"), "extra_cmdline": st.just("extra=1"),
        "tuned_params": st.just("isolcpus=1"), "timeout": st.just("0"),
    },
)  # fmt: skip
"""Without what counts once: GRUB then forgets it, while nothing is written to the disk here."""
CUSTOMS = st.sampled_from(
    ["", "", "menuentry Mine --id mine { linux /boot/mine x; }", "set default=mine",
     "set default='1>0'", "menuentry 'Mine' --id mine {\n search --set=root --file /boot/mine\n"
     " linux ($root)/boot/mine root=LABEL=x\n initrd /boot/none\n}\nset default=mine"]
)  # fmt: skip


def block(values: Mapping[str, str]) -> str:
    lines = "".join(f"{key}={value}\n" for key, value in values.items())
    return f"# GRUB Environment Block\n{lines}".ljust(1024, "#")


@settings(max_examples=30, derandomize=True, database=None)
@given(
    style=st.sampled_from(sorted(STYLES)),
    default=st.sampled_from(["0", "${saved_entry}", *NAMES]),
    nested=st.booleans(),
    environment=ENVIRONMENT,
    custom=CUSTOMS,
    missing=st.sampled_from([(), (), (), ("vmlinuz-6.1",), ("initrd-6.1",), ("early.img",)]),
)
def test_menus_beside_grub(
    style: str, default: str, nested: bool, environment: Mapping[str, str], custom: str,
    missing: tuple[str, ...],
) -> None:  # fmt: skip
    prefix = STYLES[style][0]
    files: dict[str, object] = {f"boot/{name}": name for name in FILES if name not in missing}
    files[f"{prefix}/grub.cfg"] = menu(style, default, nested)
    files[f"{prefix}/grubenv"] = block(environment)
    if custom:
        files[f"{prefix}/custom.cfg"] = custom
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = ext(folder / "fs", files, "-U", UUID, size=4)
        path = disk(folder / "disk", "gpt", [part])
        try:
            choice = ours(path)
        except Unreadable:
            return
        real = booted(emulated(path, folder, prefix))
    assert real is not None
    kernel, cmdline, initrds = real
    assert kernel.rpartition(")")[2] == choice.kernel.path
    assert cmdline == "".join(choice.cmdline.split())
    found = "".join(initrd.path for initrd in choice.initrds)
    assert initrds == found or "without its initrd" in choice.source


# --- beside pygrub ------------------------------------------------------------------------------

PYGRUB = """
import json, sys
sys.path.insert(0, sys.argv[1])
from grub.GrubConf import Grub2ConfigFile
config = Grub2ConfigFile(sys.argv[2])
config.parse()
print(json.dumps([
    [image.kernel[1], image.args, image.initrd[1]] for image in config.images
] + [int(config.default)]))
"""


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("default", ["0", "1", "3"])
def test_menus_beside_pygrub(tmp_path: Path, style: str, default: str) -> None:
    """Its parser evaluates nothing: both can agree on a number, on words without a variable."""
    prefix = STYLES[style][0]
    text = menu(style, default, nested=False)
    files: dict[str, object] = {f"boot/{name}": name for name in FILES}
    part = ext(tmp_path / "fs", {**files, f"{prefix}/grub.cfg": text}, "-U", UUID, size=4)
    choice = ours(disk(tmp_path / "disk", "gpt", [part]))
    (tmp_path / "grub.cfg").write_text(text)
    (modules,) = XEN.glob("xen-*/lib/python")
    argv = [sys.executable, "-W", "ignore", "-c", PYGRUB, modules, tmp_path / "grub.cfg"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=SECONDS)
    *images, chosen = json.loads(done.stdout)
    kernel, arguments, _initrd = images[chosen]
    assert kernel == choice.kernel.path
    known = [word for word in arguments.split() if "$" not in word]
    assert [word for word in choice.cmdline.split() if not word.startswith("vt.")] == known
