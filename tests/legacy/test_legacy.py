"""Configuration of earlier versions, and xl.cfg files, as templates and settings."""

import errno
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core import Engine
from vmcloner_core.cli.app import main
from vmcloner_core.errors import Conflict, HostCommandError, InvalidRequest, NotFound, VmclonerError
from vmcloner_core.settings import Settings
from vmcloner_legacy import settings, templates, xl_disk
from vmcloner_legacy.toml import dumps
from vmcloner_legacy.xl_cfg import read_conf, read_xl

SAMPLES = Path(__file__).parent / "samples"


def said(made: templates.Made) -> dict[str, object]:
    """Return the template as it is read back from what is written."""
    found = tomllib.loads(dumps(made.table, "a comment"))
    assert found == made.table
    return found


def reasons(made: templates.Made) -> dict[int, str]:
    return {note.line: note.reason for note in made.notes}


def test_a_token_template_with_its_values() -> None:
    made = templates.convert(SAMPLES / "old.template", SAMPLES / "old.conf")
    assert made.name == "old"
    assert said(made) == {
        "description": "Imported from old.template",
        "hypervisors": ["xen"],
        "boot": "pygrub",
        "memory": "128MiB",
        "vcpus": 2,
        "swap": "256MiB",
        "domain": {"type": "pv", "on_crash": "restart"},
        "kernel": {"cmdline": "root=/dev/xvda ro"},
        "image": {"path": "/dev/VG01/old-disk", "format": "raw"},
        "nics": [
            {"kind": "bridge", "source": "bridge0"},
            {"kind": "bridge", "source": "bridge1"},
        ],
    }
    notes = {note.text.split()[0]: note for note in made.notes}
    assert set(notes) == {
        "disk", "kernel", "targetvg", "imagepath", "thinpool", "bridge3", "colour"
    }  # fmt: skip
    assert notes["disk"].line == 8
    assert "root= is adapted" in notes["disk"].reason
    assert notes["kernel"].reason == "the template doesn't use it"
    assert notes["imagepath"].reason == "source is lvm"
    assert (notes["colour"].line, notes["colour"].reason) == (16, "isn't known")


def test_images_in_files(tmp_path: Path) -> None:
    conf = tmp_path / "old.conf"
    conf.write_text("vmname old\nsource file\nimagepath /srv/images\nsourcevg VG01\nswap off\n")
    xl = tmp_path / "old.template"
    xl.write_text("name = 'VMNAME'\ndisk = ['file:PATH/VMNAME.img,xvda,w']\n")
    made = templates.convert(xl, conf)
    assert made.table["image"] == {"path": "/srv/images/old.img", "format": "raw"}
    assert "swap" not in made.table
    assert reasons(made) == {4: "source is file"}


def test_a_plain_file() -> None:
    made = templates.convert(SAMPLES / "plain.cfg", None)
    found = said(made)
    assert found["boot"] == "kernel"
    assert found["memory"] == "256MiB"
    assert found["vcpus"] == 2
    assert found["kernel"] == {
        "path": "/boot/vmlinuz-3.8",
        "initrd": "/boot/initrd.img-3.8",
        "cmdline": "root=/dev/xvda ro console=hvc0 # no comment",
    }
    assert found["image"] == {"path": "/dev/VG01/plain-disk", "format": "raw"}
    assert found["nics"] == [{"kind": "bridge", "source": "virbr0"}]
    lost = reasons(made)
    assert set(lost) == {2, 7, 9, 16, 17, 19, 20}
    assert lost[2] == "not an assignment: Python code isn't run"
    assert lost[20] == "not a text, a number or a list of them"
    for part in ("xvda2 is xvda", "xvda1: give its size as swap", "xvdc: no disk", "xvdb: give"):
        assert part in lost[9]
    assert "MAC address of its own" in lost[17]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("builder = 'hvm'\ndisk=['/srv/x.qcow2,qcow2,hda,w']",
         {"boot": "disk", "domain": {"type": "hvm"},
          "image": {"path": "/srv/x.qcow2", "format": "qcow2"}}),
        ("type = 'pvh'\nkernel='/k'\ndisk=['format=raw, vdev=xvda, access=rw, target=/a,b']",
         {"boot": "kernel", "domain": {"type": "pvh"},
          "image": {"path": "/a,b", "format": "raw"}}),
        ("bootloader='pypxeboot'\ndisk=['tap:qcow2:/srv/x,xvda,w']",
         {"boot": "pypxeboot", "domain": {"type": "pv"},
          "image": {"path": "/srv/x", "format": "qcow2"}}),
        ("vif = ['']\ndisk = ['phy:/dev/a,xvda,w']\ndisk += ['phy:/dev/b,xvdb,w']",
         {"boot": "pygrub", "nics": [{"kind": "bridge", "source": "xenbr0"}],
          "image": {"path": "/dev/a", "format": "raw"}}),
        ("type='hvm'\nvif=['type=ioemu,model=e1000,bridge=b']\ndisk=['phy:/a,xvda,w']",
         {"nics": [{"kind": "bridge", "source": "b", "model": "e1000"}]}),
        ("disk=['phy:/a,xvda,w']\non_reboot='destroy'\non_crash='preserve'",
         {"domain": {"type": "pv", "on_crash": "preserve", "on_reboot": "destroy"}}),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f"name = 'guest'\n{text}\n")
    found = said(templates.convert(path, None))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("", InvalidRequest, "no assignment in it"),
        ("x\n" * 10, InvalidRequest, "no assignment in it"),
        ("name = 'a b'", InvalidRequest, "a b"),
        ("name = 'a'\nmemory = 0", InvalidRequest, "memory"),
        ("name = 'a'\nvcpus = 0", InvalidRequest, "vcpus"),
        ("a\0b", InvalidRequest, "not a configuration file"),
        ("#" * 2_000_000, InvalidRequest, "not a configuration file"),
    ],
)
def test_what_makes_no_template(
    tmp_path: Path, text: str, error: type[VmclonerError], reason: str
) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(text)
    with pytest.raises(error, match=reason):
        templates.convert(path, None)
    with pytest.raises(NotFound):
        templates.convert(tmp_path / "none", None)


@pytest.mark.parametrize(
    "text",
    [
        "a = __import__('os').system('touch owned')",
        "a = [x for x in ().__class__.__base__.__subclasses__()]",
        "a = " + "[" * 100_000,
        "a = " + "(" * 100_000 + "1" + ")" * 100_000,
        "a = " + "9" * 10_000,
        "a = " + "-" * 50_000 + "1",
        "a = '" + "\\'" * 400_000,
        "a = '" * 200_000,
        "a = {'b': 1}",
        "a = 1.5",
        "a = b'x'",
        "a = None",
        "a = 'x' * 10**9",
    ],
    ids=lambda text: text[:12],
)
def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Each is a note, none takes memory or for ever."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guest.cfg"
    path.write_text(f"name = 'guest'\n{text}\n")
    found, notes = read_xl(path)
    assert "guest" in [item.value for item in found]
    assert "a" not in [item.key for item in found]
    assert notes
    assert not (tmp_path / "owned").exists()


@given(st.text(max_size=200))
def test_any_text_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.cfg"
    path.write_text(text.replace("\0", ""))
    read_xl(path)
    read_conf(path)


@given(st.text(), st.text(min_size=1))
def test_any_text_survives_toml(text: str, key: str) -> None:
    table = {key: text, "t": {"list": [text, text]}, "tables": [{"a": text}, {"b": 1}]}
    if not any("\ud800" <= char <= "\udfff" for char in text + key) and key not in ("t", "tables"):
        assert tomllib.loads(dumps(table)) == table


def test_the_network_takes_a_command_line_too(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text("name='a'\nbootloader='/usr/lib/xen/bin/pypxeboot'\nextra='quiet'\n")
    made = templates.convert(path, None)
    assert said(made)["kernel"] == {"cmdline": "quiet"}


@pytest.mark.parametrize(
    ("disk", "lost"),
    [
        ("format=vhd,vdev=xvda,access=ro,script=block-drbd,target=/x.vhd",
         ("format=vhd", "access=ro", "script=block-drbd")),
        ("tap:vhd:/x.vhd,xvda,r", ("format=vhd", "access=r")),
        ("drbd:res,xvda,w", ("drbd: isn't carried over",)),
        ("/x,raw,xvda,rw,discard", ("discard isn't",)),
        ("/x,raw,xvda,rw,devtype=disk", ()),
        ("phy:/x,xvda,w", ()),
    ],
)  # fmt: skip
def test_what_else_is_said_of_a_disk_is_named(
    tmp_path: Path, disk: str, lost: tuple[str, ...]
) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f"name='a'\ndisk=['{disk}']\n")
    reason = reasons(templates.convert(path, None)).get(2, "")
    assert len(reason.split("; ")) == max(1, len(lost))
    assert all(part in reason for part in lost)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "1" * 5000, "-" + "9" * 50, "10**12"])
def test_numbers_that_nothing_has(tmp_path: Path, number: str) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f"name='a'\nmemory={number}\nvcpus=1\n")
    made = templates.convert(path, None)
    assert "memory" not in made.table
    assert reasons(made)[2] == "not a text, a number or a list of them"


def test_a_disk_whose_name_is_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(
        "name='a'\nkernel='/k'\nextra='root=/dev/xvda(1 ro'\ndisk=['phy:/a,xvda(1,w']\n"
    )
    assert templates.convert(path, None).table["kernel"]["cmdline"] == "root=/dev/xvda ro"


def test_lines_that_say_a_key_again(tmp_path: Path) -> None:
    xl, conf = tmp_path / "guest.cfg", tmp_path / "guest.conf"
    xl.write_text("name='a'\nkernel='/k'\nkernel='/k2'\ndisk='phy:/a,xvda,w'\ndisk+=['b']\n")
    conf.write_text("swap 1\nSwap 2\n")
    made = templates.convert(xl, conf)
    assert made.table["kernel"]["path"] == "/k2"
    assert made.table["swap"] == "2MiB"
    found = {(Path(note.file).name, note.line): note.reason for note in made.notes}
    assert found["guest.cfg", 2] == "line 3 says kernel again, and that counts"
    assert found["guest.cfg", 4] == "line 5 says disk again, and that counts"
    assert found["guest.conf", 1] == "line 2 says swap again, and that counts"


# --- settings, and the commands -----------------------------------------------------------------


def test_settings(tmp_path: Path) -> None:
    table, notes = settings.convert(SAMPLES / "vmcloner.conf")
    path = tmp_path / "vmcloner.toml"
    path.write_text(dumps(table))
    loaded = Settings.load(path)
    assert loaded.defaults.hypervisor == "xen"
    assert loaded.defaults.storage == "lvm-thin"
    pools = loaded.host().storage
    assert pools["lvm-thin"].values == {"vg": "VG01"}
    assert pools["files"].values == {"path": "/srv/images"}
    assert [note.line for note in notes] == [3, 5]
    assert "--jobs" in notes[1].reason


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    return tmp_path


def test_the_command_writes_a_template_that_is_found(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["template", "import-legacy", str(SAMPLES / "old.template"), str(SAMPLES / "old.conf")]
    assert main([*argv, "-f", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"file", "line", "text", "reason"} == set(rows[0])
    assert len(rows) == 7
    template = Engine.open().template("old")
    assert template.memory == 128 * 1024**2
    assert template.nics[1].source == "bridge1"
    assert main(argv) == 5
    assert "--force" in capsys.readouterr().err
    assert main([*argv, "--force"]) == 0


def test_a_file_that_cannot_be_replaced_stays_as_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in full beside it, and then put in its place."""
    (here / "templates").mkdir()
    old = here / "templates/old.toml"
    old.write_text("precious = 1\n")
    files = [str(SAMPLES / "old.template"), str(SAMPLES / "old.conf")]
    argv = ["template", "import-legacy", *files, "--force"]

    def full(_path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert main(argv) == HostCommandError.exit_code
    assert old.read_text() == "precious = 1\n"
    assert main(argv[:-1]) == Conflict.exit_code
    assert old.read_text() == "precious = 1\n"
    assert main(argv) == 0
    assert "precious" not in old.read_text()
    assert [file.name for file in old.parent.iterdir()] == ["old.toml"]


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text("name = 'a'\nkernel = '/k'\nextra = '\\ud800'\n")
    made = templates.convert(path, None)
    assert reasons(made)[3] == "not a text, a number or a list of them"
    dumps(made.table).encode()


def test_the_files_may_come_in_either_order(here: Path) -> None:
    argv = ["template", "import-legacy", str(SAMPLES / "old.conf"), str(SAMPLES / "old.template")]
    assert main([*argv, "--name", "other"]) == 0
    assert (here / "templates/other.toml").exists()


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "import-legacy", str(SAMPLES / "vmcloner.conf"), "--dry-run"]) == 0
    assert 'vg = "VG01"' in capsys.readouterr().out
    assert list(here.iterdir()) == []


def test_two_templates_are_one_too_many(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SAMPLES / "plain.cfg")
    assert main(["template", "import-legacy", path, path]) == 3
    assert "at most one conf file" in capsys.readouterr().err


# --- as xl reads them ---------------------------------------------------------------------------


def converted(tmp_path: Path, text: str) -> tuple[dict[str, Any], dict[int, str]]:
    path = tmp_path / "guest.cfg"
    path.write_text(f"name = 'guest'\n{text}\n")
    made = templates.convert(path, None)
    return said(made), reasons(made)


HVM = "builder='hvm'\ndisk=['phy:/a,hda,w']\n"


@pytest.mark.parametrize(
    ("text", "expected", "lost"),
    [
        (HVM + "kernel='/usr/lib/xen-4.0/boot/hvmloader'\nramdisk='/i'\nextra='x'",
         {"boot": "disk"},
         {4: "hvmloader is the firmware", 5: "no kernel to go with it", 6: "takes no command"}),
        (HVM + "kernel='/boot/vmlinuz'\nramdisk='/i'\ncmdline='x'",
         {"boot": "kernel", "kernel": {"path": "/boot/vmlinuz", "initrd": "/i", "cmdline": "x"}},
         {}),
        (HVM + "kernel=''\nbootloader=''", {"boot": "disk"}, {}),
        (HVM + "bootloader='/usr/bin/pygrub'", {"boot": "disk"}, {4: "boots by its firmware"}),
        (HVM + "boot='c'", {}, {}),
        (HVM + "boot='dc'", {}, {4: "isn't carried over"}),
        (HVM + "device_model='/usr/lib/xen/bin/qemu-dm'", {}, {4: "isn't carried over"}),
        (HVM + "bios='ovmf'", {"domain": {"type": "hvm", "firmware": "efi"}}, {}),
        (HVM + "firmware='uefi'\nbios='seabios'", {"domain": {"type": "hvm", "firmware": "efi"}},
         {5: "firmware= counts"}),
        (HVM + "firmware='bios'", {"domain": {"type": "hvm"}}, {}),
        (HVM + "firmware='/usr/lib/xen/boot/hvmloader'", {"domain": {"type": "hvm"}}, {}),
        (HVM + "bios='rombios'", {"domain": {"type": "hvm"}}, {4: "SeaBIOS"}),
        ("firmware='pvgrub64'", {"domain": {"type": "pv"}}, {2: "only HVM guests"}),
        ("builder='xyz'", {"domain": {"type": "pv"}}, {2: "hvm, generic and linux"}),
        ("type='xyz'\nvif=['bridge=b']", {"nics": [{"kind": "bridge", "source": "b"}]},
         {2: "pv, pvh and hvm are known"}),
        ("builder='linux'", {"domain": {"type": "pv"}}, {}),
        ("pvh=1\nkernel='/k'", {"domain": {"type": "pvh"}, "boot": "kernel"}, {}),
        ("kernel='/k'\ncmdline=''\nroot='/dev/a'\nextra='b'", {"kernel": {"path": "/k"}},
         {4: "cmdline= counts", 5: "cmdline= counts"}),
        ("kernel='/k'\nroot='/dev/a'\nextra='b'",
         {"kernel": {"path": "/k", "cmdline": "root=/dev/a b"}}, {}),
        ("bootloader='pygrub'\ncmdline='quiet'", {"kernel": {"cmdline": "quiet"}}, {}),
        ("initrd='/i'", {"boot": "pygrub"}, {2: "no kernel to go with it"}),
    ],
)  # fmt: skip
def test_what_a_guest_boots(
    tmp_path: Path, text: str, expected: dict[str, Any], lost: dict[int, str]
) -> None:
    found, notes = converted(tmp_path, text)
    assert {key: found[key] for key in expected} == expected
    notes.pop(0, None)  # where there is no disk
    assert set(notes) == set(lost)
    assert all(reason in notes[line] for line, reason in lost.items())
    assert "hvmloader" not in str(found)


@pytest.mark.parametrize(
    ("disks", "image"),
    [
        (["phy:/swapfest-root,xvda,w", "phy:/swapfest-data,xvdb,w"], "/swapfest-root"),
        (["phy:/dev/vg/noswap,xvda,w"], "/dev/vg/noswap"),
        (["phy:/dev/vg/my-swap,xvda,w"], "/dev/vg/my-swap"),
        (["phy:/dev/vg/my-swap,xvda1,w", "phy:/dev/vg/my-disk,xvda2,w"], "/dev/vg/my-disk"),
        (["file:/d/swap.img,xvda1,w", "file:/d/disk.img,xvda2,w"], "/d/disk.img"),
        (["file:/x.iso,ioemu:hdc:cdrom,r", "phy:/a,ioemu:hda,w"], "/a"),
        (["phy:/dev/cdrom,ioemu:hdc:cdrom,r", "file:/a b.img,ioemu:hda,w"], "/a b.img"),
        (["file:/x.iso,hda:cdrom,r", "phy:/a,sda,w"], "/a"),
        (["file:/x.iso,hdc,r", "phy:/a,hda,w"], "/a"),
        (["/x.iso,raw,hdc,ro,cdrom", "/a,raw,hda,rw"], "/a"),
        (["/x.iso,,hdc,cdrom", "/a"], "/a"),
        ([",hdc:cdrom,r", "phy:/a,hda"], "/a"),
        (["format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/x.iso", "/a,,hda"], "/a"),
        (["devtype=cdrom,target=/x,y.iso", "vdev=hda,target=/a,b=c"], "/a,b=c"),
        (["phy:/ro,xvda,r", "phy:/rw,xvdb,w"], "/rw"),
        (["tap2:tapdisk:aio:/a,xvda,w"], "/a"),
        (["phy:vg0/a,xvda,w"], "/dev/vg0/a"),
        (["phy:/a,xvda"], "/a"),
        (["rbd:pool/image:id=x,xvda,w", "phy:/a,xvdb,w"], "/a"),
        (["drbd:res,xvda,w", "phy:/a,xvdb,w"], "/a"),
        (["target=rbd:pool/image", "phy:/a,xvdb,w"], "/a"),
    ],
)  # fmt: skip
def test_the_disk_that_is_cloned(tmp_path: Path, disks: list[str], image: str) -> None:
    found, notes = converted(tmp_path, f"disk = {disks!r}")
    assert found["image"] == {"path": image, "format": "raw"}
    assert len(notes.get(2, "").split("; ")) >= len(disks) - 1


def test_a_disk_that_root_names(tmp_path: Path) -> None:
    text = "kernel='/k'\nroot='/dev/xvda3 ro'\ndisk=['phy:/boot,xvda1,w','phy:/root,xvda3,w']"
    found, notes = converted(tmp_path, text)
    assert found["image"]["path"] == "/root"
    assert found["kernel"]["cmdline"] == "root=/dev/xvda ro"
    assert "xvda1: give its size as a table [[disks]]" in notes[4]
    text = "kernel='/k'\nextra='root=/dev/xvdb1'\ndisk=['phy:/a,xvda,w','phy:/b,xvdb,w']"
    assert converted(tmp_path, text)[0]["image"]["path"] == "/b"


@pytest.mark.parametrize(
    ("guest", "vif", "nic", "lost"),
    [
        ("hvm", "bridge=b,model=e1000", {"source": "b", "model": "e1000"}, ""),
        ("hvm", "MAC=00:16:3e:00:00:01, bridge = b , model= virtio-net",
         {"source": "b", "model": "virtio-net"}, "MAC address of its own"),
        ("hvm", "type=ioemu,bridge=b", {"source": "b", "model": "rtl8139"}, ""),
        ("hvm", "", {"source": "xenbr0", "model": "rtl8139"}, ""),
        ("hvm", "type=vif,model=e1000", {"source": "xenbr0"}, "model=e1000"),
        ("pv", "bridge=b,model=e1000", {"source": "b"}, "model=e1000"),
        ("pvh", "bridge=b,type=vif,script=vif-bridge", {"source": "b"}, ""),
        ("pv", "bridge=b,script=vif-openvswitch", {"source": "b"}, "script= isn't"),
        ("pv", "bridge=b.42,script=vif-openvswitch", {"source": "b"}, "VLAN 42 isn't"),
        ("pv", "bridge=b:42:43,script=vif-openvswitch", {"source": "b"}, "VLAN 42:43 isn't"),
        ("pv", "bridge=b.42", {"source": "b.42"}, ""),
        ("hvm", "type=netfront,bridge=b", {"source": "b"}, ""),
        ("pv", "bridge=b,ip=10.0.0.1,vifname=x,rate=1MB/s", {"source": "b"}, "rate= isn't"),
        ("pv", "bridge=", {"source": "xenbr0"}, ""),
    ],
)  # fmt: skip
def test_network_cards(
    tmp_path: Path, guest: str, vif: str, nic: dict[str, str], lost: str
) -> None:
    found, notes = converted(tmp_path, f"type='{guest}'\nvif=['{vif}']")
    assert found["nics"] == [{"kind": "bridge", **nic}]
    assert (3 in notes) == bool(lost)
    assert lost in notes.get(3, "")


def test_a_machines_name_becomes_one_of_a_template(tmp_path: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text("name = 'XenGuest2'\ndisk = ['phy:/a,xvda,w']\n")
    made = templates.convert(path, None)
    assert made.name == "xenguest2"
    assert reasons(made) == {1: "templates have names in lower case: xenguest2"}
    with pytest.raises(InvalidRequest, match="XenGuest2"):
        templates.convert(path, None, "XenGuest2")


@given(st.text(alphabet="phy:,/=aioemu cdromtgx1", max_size=40))
def test_any_disk_is_parsed(text: str) -> None:
    disk = xl_disk.parse(text)
    assert disk.target is None or disk.target in f"/dev/{text}" or disk.target in text


def test_python_says_nothing_of_values(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text("name = 'a'\nmemory = 1if 2else 3\nextra = '\\d'\n")
    assert {item.key for item in read_xl(path)[0]} == {"name", "extra"}
    assert not recwarn.list
