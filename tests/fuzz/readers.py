"""The readers of foreign and hostile input, with seeds and words for each."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import socket
import struct
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import attrs

from tests.boot.disks import disk, ext, fat, fill, run
from tests.boot.memory import tree
from tests.fuzz.harness import mutated, reshaped
from tests.lvm.fakes import IMPORTED, write_disk
from tests.pxe.test_packet import reply
from vmcloner_boot.disk_image import Budget, Bytes, open_image
from vmcloner_boot.loaders import choose
from vmcloner_boot.posix_regex import BadExpression, search
from vmcloner_boot.systems import systems
from vmcloner_boot.trees import Tree
from vmcloner_core import names, placeholders, qcow2, records, unpacking, values_file
from vmcloner_core.catalog import Catalog
from vmcloner_core.errors import HostCommandError, InvalidRequest, VmclonerError
from vmcloner_core.model import Labels
from vmcloner_core.settings import Settings
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.units import parse_size
from vmcloner_identity.documents import check_mapping, check_user_data
from vmcloner_legacy import templates as legacy
from vmcloner_libvirt import metadata as domain_xml
from vmcloner_lvm import ondisk, tags
from vmcloner_lvm.volumegroup import VolumeGroup
from vmcloner_pxe import ipxe, location, packet, tftp
from vmcloner_pxe.errors import Malformed
from vmcloner_syslinux import choice as syslinux_choice
from vmcloner_syslinux import config as syslinux

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

UUID = "11111111-2222-4333-8444-555555555555"
MENU = (
    'set a=1\nmenuentry "a b" --id i { search --fs-uuid --set=root 1; linux /k x $a; initrd /i; }\n'
)


@attrs.frozen(kw_only=True)
class Reader:
    """A reader: makes its seeds in a folder, and reads an input in another.

    :param errors: what it may raise. :param mutate: makes an input of the seeds and words.
    """

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]
    words: list[bytes] = attrs.field(factory=list)
    errors: tuple[type[Exception], ...] = (VmclonerError,)
    mutate: Callable[[random.Random, list[bytes], list[bytes]], bytes] = mutated


def known(value: object) -> None:
    """Count an input as refused if its reader says so by None."""
    if value is None:
        raise InvalidRequest("none of ours")


def given(*texts: str | bytes) -> Callable[[Path], list[bytes]]:
    seeds = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return lambda _folder: seeds


def words(text: str) -> list[bytes]:
    return [b"\n", b" ", b"\\", b'"', b"'", b"${", *text.encode().split()]


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- what a guest boots -------------------------------------------------------------------------


def booted(trees: Sequence[Tree]) -> None:
    found = choose(trees, Budget(left=64 * 1024**2, deadline=time.monotonic() + 30))
    for file in (found.kernel, *found.initrds):
        assert file.tree in trees
        node = file.tree.file(file.path)
        assert node is not None
        assert (node.kind, node.size) == (file.node.kind, file.node.size)
    assert found.source.isprintable()


def menu_at(*paths: str) -> Callable[[bytes, Path], object]:
    """Return a reader of an input that is the file of that name on a disk."""

    def read(data: bytes, _folder: Path) -> None:
        files: dict[str, object] = {"k": "k", "i": "i", "boot/k": "k", "link": Path("/etc/passwd")}
        files |= {"loop": Path("loop"), "other.cfg": MENU}
        if paths[0].startswith("loader"):
            files["boot/grub/grub.cfg"] = "blscfg\n"
        booted([tree({**files, **dict.fromkeys(paths, data)}, 1, "gpt", UUID), tree({}, 2, "gpt")])

    return read


GRUB = words("""
    . [ ] { } ; | & ( ) < > $@ $# $? $1 $* ${a} $a blscfg boot break cat chainloader configfile
    continue cpuid decrement default echo eval exit export fallback file_env function hwmatch
    increment initrd insmod linux load_env loopback menuentry multiboot probe regexp return
    save_env search setparams shift source submenu test true false unset if then else elif fi for
    in do done while until --set=a --set=root --file --label --fs-uuid --id /boot/* (*)/* (hd0,1)/k
    ($root)/k $prefix/x -a -o ! = -eq -pgt -plt -d -f -e -s -n -z (a*)*b [[:alpha:]]+ {2,3}
    while true; do f(){ 9999999999 0x7fffffff -1
""")


def mbr_and_files(folder: Path) -> list[bytes]:
    """Make a disk of each kind that is made in a moment."""
    menu = MENU.encode()
    files: dict[str, object] = {"boot/grub/grub.cfg": menu, "k": "k", "i": "i", "l": Path("k")}
    first = ext(folder / "ext", files, size=2)
    second = fat(folder / "fat", 12, {"EFI/a long name of it/grub.cfg": menu, "k": b"k"}, 2)
    third = fat(folder / "fat32", 32, {"EFI/debian/grub.cfg": menu, "k": b"k"}, 34)
    old = ext(folder / "ext2", files, kind="ext2", size=2)
    logical = disk(folder / "dos", "dos", [second, first, second], logical=1)
    gpt = disk(folder / "gpt", "gpt", [second, first])
    return [packed(path) for path in (first, second, third, old, logical, gpt)]


def btrfs(folder: Path) -> list[bytes]:
    root = fill(folder / "root", {"boot/grub/grub.cfg": MENU, "k": "k", "l": Path("k")})
    run("mkfs.btrfs", "-q", "--mixed", "-b", "20M", "--rootdir", root, _empty(folder / "b", 20))
    return [packed(folder / "b")]


def xfs(folder: Path) -> list[bytes]:
    (folder / "grub.cfg").write_text(MENU)
    lines = f"x\n0 0\nd--755 0 0\ngrub d--755 0 0\ngrub.cfg ---644 0 0 {folder}/grub.cfg\n$\n"
    lines += f"k ---644 0 0 {folder}/grub.cfg\n$\n"
    (folder / "proto").write_text(lines)
    run("mkfs.xfs", "-q", "-p", folder / "proto", _empty(folder / "x", 300))
    return [packed(folder / "x")]


def _empty(path: Path, mib: int) -> Path:
    with path.open("wb") as stream:
        stream.truncate(mib * 1024**2)
    return path


def packed(path: Path) -> bytes:
    """Return the sectors of an image that aren't empty, each with its number, behind the size."""
    content = path.read_bytes()
    parts = [struct.pack("<Q", len(content))]
    for at in range(0, len(content), 4096):
        if any(block := content[at : at + 4096]):
            sectors = range(0, len(block), 512)
            parts += [
                struct.pack("<I", (at + s) // 512) + block[s : s + 512]
                for s in sectors
                if any(block[s : s + 512])
            ]
    return b"".join(parts)


class Unpacked(Bytes):
    """The disk that :func:`packed` packed."""

    def __init__(self, data: bytes) -> None:
        self.size = min(int.from_bytes(data[:8], "little"), 1 << 60)
        self.sectors = {
            int.from_bytes(data[at : at + 4], "little"): data[at + 4 : at + 516].ljust(512, b"\0")
            for at in range(8, len(data), 516)
        }

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset < 0 or offset >= end:
            return b""
        first, last = offset // 512, -(-end // 512)
        data = b"".join(self.sectors.get(n, bytes(512)) for n in range(first, last))
        return data[offset - first * 512 : end - first * 512]


def read_disk(data: bytes, _folder: Path) -> None:
    trees, skipped = systems(Unpacked(data))
    assert all(isinstance(part.reason, str) for part in skipped)
    booted(trees)


def qcow2_images(folder: Path) -> list[bytes]:
    raw = folder / "raw"
    raw.write_bytes(bytes(range(256)) * 256 + bytes(65536))
    for name, options in (("a", []), ("c", ["-c"]), ("s", ["-o", "cluster_size=512"])):
        run("qemu-img", "convert", "-O", "qcow2", *options, raw, folder / f"{name}.qcow2")
    run(*f"qemu-img create -q -f qcow2 -F raw -b raw {folder}/o.qcow2".split())
    return [path.read_bytes() for path in sorted(folder.glob("*.qcow2"))]


def read_qcow2(data: bytes, folder: Path) -> None:
    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    with contextlib.suppress(qcow2.Refused):
        header = qcow2.read_header(read)
        qcow2.check_tables(header, read, len(data))
    path = folder / "disk"
    path.write_bytes(data)
    image = open_image(path, "qcow2", Budget(left=64 * 1024**2, deadline=time.monotonic() + 30))
    with contextlib.closing(image):
        for offset in (0, 65536, image.size // 2, max(0, image.size - 4096)):
            image.read(offset, 4096)


def packed_images(_folder: Path) -> list[bytes]:
    """Make an image in each compression and archive, some in two layers."""
    disk = b"a disk " * 500 + bytes(20_000)
    ova = archive({"a.ovf": OVF.encode(), "a.mf": b"SHA256(a)= 1", "disk1.vmdk": disk})
    box = archive({"./metadata.json": b"{}", "./box.img": disk, "info/readme.txt": b"x"})
    plain = [lzma.compress(disk), bz2.compress(disk), zstd.compress(disk), gzip.compress(disk)]
    return [*plain, ova, box, gzip.compress(box), archive({"d.raw.xz": lzma.compress(disk)})]


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue().rstrip(b"\0") + bytes(1024)


OVF = """<Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>
<File ovf:id="f" ovf:href="disk1.vmdk"/></References>
<DiskSection><Disk ovf:diskId="d" ovf:fileRef="f"/></DiskSection></Envelope>"""


class NoCommands:
    """A command runner on a host without commands."""

    def run(self, argv: Sequence[str], **_options: object) -> None:
        raise HostCommandError(f"{argv[0]}: not found")


def read_packed(data: bytes, folder: Path) -> None:
    for layer in folder.glob("layer*"):
        shutil.rmtree(layer)
    path = folder / "image"
    path.write_bytes(data)
    found = unpacking.unpack(path, folder, NoCommands(), lambda _done, _total: None)  # type: ignore[arg-type]
    assert found.path.is_relative_to(folder)
    assert not found.path.is_symlink()


def read_regex(data: bytes, _folder: Path) -> None:
    expression, _, text = text_of(data)[:400].partition("\n")
    search(expression, text)


# --- the network --------------------------------------------------------------------------------


def read_syslinux(data: bytes, _folder: Path) -> None:
    def included(name: str) -> bytes | None:
        return {"a": data, "b": b"LABEL b\nKERNEL k\nINCLUDE a\n"}.get(name[-1:])

    syslinux_choice.choose(syslinux.parse(data, included))


def read_ipxe(data: bytes, _folder: Path) -> None:
    chained: dict[str, bytes] = {"a": data, "b": b"#!ipxe\nkernel k\nboot\n"}
    ipxe.parse(
        data, {"mac": "52:54:00:00:00:01", "ip": "10.0.0.1"}, lambda name: chained.get(name[-1:])
    )


def read_packet(data: bytes, _folder: Path) -> None:
    packet.parse(data, verify=False)


def read_tftp(data: bytes, _folder: Path) -> None:
    """Let a server answer with packets, each with its length before it."""
    deadline = time.monotonic() + 0.02
    patience = tftp.Patience()
    ours, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, server:
        download = tftp.Download(
            "10.0.0.1", "f", max_size=4096, deadline=deadline, patience=patience
        )
        download._socket.close()
        download._socket = ours
        first, *others = data.split(b"--")[:20]
        for answer in others:
            server.send(answer[:1500])
        server.shutdown(socket.SHUT_WR)
        with download:
            if len(first) >= 4:
                download._begin(first)
                download.read(bytes)


def read_location(data: bytes, _folder: Path) -> None:
    server, _, name = text_of(data).partition("\n")
    base = location.base_of("10.0.0.1", server, None)
    location.beside(base.locate(name)).locate(name)


# --- files of users -----------------------------------------------------------------------------


def read_xl(data: bytes, folder: Path) -> None:
    path, conf = folder / "guest.cfg", folder / "guest.conf"
    head, _, tail = data.partition(b"----")
    path.write_bytes(head)
    conf.write_bytes(tail)
    legacy.convert(path, conf if tail else None, "guest")


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def read_file(data: bytes, folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        read(path)

    return read_file


def read_documents(data: bytes, _folder: Path) -> None:
    with contextlib.suppress(VmclonerError):
        check_mapping(data, "meta-data")
    check_user_data(data, "user-data")


def read_names(data: bytes, _folder: Path) -> None:
    text = text_of(data)
    with contextlib.suppress(VmclonerError):
        parse_size(text)
    for check in (names.split_clone, names.split_volume):
        check(text)
    for target in names.parse_targets(text.split("\n")):
        names.fold([target.fleet])


def read_placeholders(data: bytes, _folder: Path) -> None:
    values = placeholders.clone_values(make_labels(), [SimpleNamespace(mac="52:54:00:00:00:01")])
    placeholders.fill(text_of(data), values, what="text")


def mapping_of(data: bytes) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text_of(data).split("\n"))


def read_labels(data: bytes, _folder: Path) -> None:
    labels = Labels.from_mapping(mapping_of(data))
    known(labels)
    assert labels is None or Labels.from_mapping(labels.to_mapping()) == labels


def read_domain(data: bytes, _folder: Path) -> None:
    root = domain_xml.parse(text_of(data))
    for part in (domain_xml.labels_in, domain_xml.macs, domain_xml.networks_of,
                 domain_xml.nvram, domain_xml.disks):  # fmt: skip
        part(root)


def read_record(data: bytes, folder: Path) -> None:
    kept = records.Records(folder)
    (folder / "web-1").mkdir(exist_ok=True)
    (folder / "web-1" / records.RECORD).write_bytes(data)
    kept.of(["web-1"])
    known(kept.find("web-1"))


def record_seeds(_folder: Path) -> list[bytes]:
    labels = make_labels().to_mapping()
    common = {"labels": labels, "uuid": UUID, "macs": ["52:54:00:00:00:01"], "values": {"a": 1}}
    seed = {"image": "/x/seed.iso", "cmdline": "a"}
    card = {"mac": "52:54:00:00:00:01", "address": "10.0.0.1/24"}
    identity = {"uuid": UUID, "generation": UUID, "hostname": "web-1", "machine_id": "0" * 32,
                "interfaces": [card], "gateway": "10.0.0.9", "nameservers": ["10.0.0.2"],
                "user": "root", "authorized_keys": ["ssh-ed25519 A"]}  # fmt: skip
    told = {"identity": identity, "seed": {"image": None, "cmdline": ""}}
    made = ({**common, "identity": None, "seed": seed, "restart": True}, {**common, **told})
    return [*(json.dumps(record, indent=1).encode() for record in made), b"[" * 100_000]


def read_lvm_text(data: bytes, _folder: Path) -> None:
    group = VolumeGroup.parse(text_of(data), "vg")
    assert group.name is not None


def lvm_texts(_folder: Path) -> list[bytes]:
    recorded = Path(__file__).parents[1] / "lvm" / "recorded"
    return [path.read_bytes()[:20_000] for path in sorted(recorded.glob("*.vg"))]


def read_lvm_tags(data: bytes, _folder: Path) -> None:
    found = tags.decode(text_of(data).split("\n"))
    known(found and Labels.from_mapping(found))


def lvm_disks(folder: Path) -> list[bytes]:
    """Make physical volumes that name themselves as their groups' only one: ``pv``."""
    text = IMPORTED.replace("/dev/ubda", "pv")
    write_disk(folder / "plain", text, area=8192)
    write_disk(folder / "wrapped", text, area=8192, at=8192 - 512)
    return [b"1" + (folder / name).read_bytes() for name in ("plain", "wrapped")]


def read_lvm_disk(data: bytes, folder: Path) -> None:
    """Read a physical volume; after a ``1``, with the checksums of what is in it now."""
    disk = bytearray(data[1:])
    if data[:1] == b"1":
        for label in range(0, min(2048, len(disk) - 511), 512):
            area, size = struct.unpack_from("<QQ", disk, label + 104)
            summed(disk, area, size)
            sector = bytes(disk[label + 20 : label + 512])
            struct.pack_into("<I", disk, label + 16, ondisk.checksum(sector))
    (folder / "pv").write_bytes(disk)
    os.chdir(folder)
    known(ondisk.read_metadata([Path("pv")]))


def summed(disk: bytearray, area: int, size: int) -> None:
    """Make the checksums of a metadata area fit, if there is one."""
    if not 512 <= area <= len(disk) - 512:
        return
    at, taken = struct.unpack_from("<QQ", disk, area + 40)
    if at <= size <= 2**20 and taken <= size:
        text = (disk[area + at : area + size] + disk[area + 512 : area + at])[:taken]
        struct.pack_into("<I", disk, area + 56, ondisk.checksum(bytes(text)))
    struct.pack_into("<I", disk, area, ondisk.checksum(bytes(disk[area + 4 : area + 512])))


def read_template(data: bytes, folder: Path) -> None:
    """Read two templates, of which one may extend the other."""
    own, _, other = data.partition(b"----\n")
    (folder / "t.toml").write_bytes(own)
    (folder / "a.toml").write_bytes(other or PARENT)
    (folder / "own.xml").write_text("<domain/>")
    Catalog(folder / "built", [folder]).template("t")


PARENT = b'[image]\npath = "/x/a.raw"\n[values]\nrole = "db"\n'
TEMPLATE = """
extends = "a"
description = "one of all"
hypervisors = ["kvm", "xen"]
memory = "256MiB"
vcpus = 2
boot = "kernel"
disk_size = "3GiB"
swap = "64MiB"
ready = 'console:x {{ name }}'
disks = [{ size = 1073741824, content = "empty" }]
nics = [{ kind = "network", source = "default" }, { kind = "user", model = "e1000" }]
[image]
url = "https://h/i.qcow2"
sha256 = "%s"
format = "qcow2"
[kernel]
path = "vmlinuz"
initrd = "/x/initrd"
cmdline = "root=/dev/vda1 {{ name }}"
[domain]
type = "hvm"
machine = "q35"
cpu = "host-passthrough"
firmware = "efi"
disk_bus = "scsi"
on_crash = "preserve"
on_reboot = "destroy"
autostart = true
agent = false
devices = "<rng/>"
xml = "own.xml"
[identity]
provider = "cloud-init"
hostname = "{{ name }}.x"
authorized_keys = ["ssh-ed25519 A", "~/.ssh/x"]
addresses = ["dhcp", "10.0.0.{{ index }}/24"]
gateway = "10.0.0.1"
nameservers = ["10.0.0.2"]
machine_id = "{{ index }}"
user_data = "user-data.j2"
network_config = "net"
kernel_args = ""
[ssh]
user = "root"
port = 2222
key = "id"
[values]
role = "db"
number = 7
""" % ("0a" * 32)
BUILT = """
ready = "port:22"
[[disks]]
size = "1GiB"
[[disks]]
size = "1GiB"
content = "swap"
[[nics]]
kind = "bridge"
source = "br0"
[image]
builder = "debian"
[image.options]
packages = ["a", "b"]
size = 7
----
[image]
path = "b.qcow2"
"""
SETTINGS = """
[defaults]
host = "local"
hypervisor = "kvm"
storage = "files"
[limits]
memory_overcommit = 2.0
[hosts.local]
state = "/x/state"
[hosts.local.storage.files]
path = "/x"
qemu_user = "qemu"
[hosts.local.storage.fast]
driver = "lvm-thin"
vg = "vg"
pool = 3
list = ["a", 1, true, 1979-05-27]
[hosts.local.hypervisor.kvm]
uri = "qemu:///system"
starts = 4
[hosts.local.hypervisor.xen]
driver = "xen"
uri = "xen:///system"
"""
XL = """name = 'a'
type = 'pvh'
kernel = "/k"
ramdisk = "/i"
root = "/dev/xvda1 ro"
extra = 'x' 'y'
memory = 512
maxmem = '1024'
vcpus = 0x2
cpus = [0, 1, "2-3"]
disk = ['phy:/dev/vg/a,xvda,w', 'format=qcow2,vdev=hda,access=rw,target=/x/%n']
disk += ['tap:aio:/x/a-swap,xvdb2,w', 'file:/x/cd.iso,hdc:cdrom,r', '/x/a.raw,raw,xvdc,rw']
disk += ['script=iscsi,vdev=xvdd,target=iqn.x', 'nbd:10809,xvde,w', 'devtype=cdrom,hdd,r']
vif = ['mac=52:54:00:00:00:01,bridge=b,script=vif-openvswitch', '', 'type=ioemu,model=e1000']
on_poweroff = 'destroy'
on_reboot = 'restart'
on_crash = 'destroy'
"""
HVM = """name = "WIN"
builder = 'hvm'
bios = 'ovmf'
firmware = 'bios'
boot = 'c'
bootloader = "/usr/bin/pygrub"
pvh = 1
vnc = 1
memory = MEM
kernel = 'KERNEL'
disk = ['phy:PATH/VMNAME-disk,xvda1,w', 'phy:PATH/VMNAME-swap,sda2,w']
vif = ['bridge=BRIDGE1']
cmdline = 'root=/dev/xvda1'
----vmname precise
source lvm
sourcevg vg
targetvg vg2
thinpool p
swap 512M
mem 256
kernel /boot/k
bridge1 br0
imagepath /x
"""

READERS = {
    "grub": Reader(
        seeds=given(
            MENU,
            MENU * 2 + "if [ -f /k -a ! -e /x ]; then set default=i; fi\n",
            "function f { for a in 1 $@ /boot/*; do linux /k $a; break; done; }\nf 1 2\nboot\n",
            "regexp --set=a '(.*)b' ab; configfile /other.cfg; source $prefix/x\n",
        ),
        read=menu_at("boot/grub/grub.cfg"),
        words=GRUB,
    ),
    "grubenv": Reader(
        seeds=given("# GRUB Environment Block\nsaved_entry=i\na=b\\\nc\n" + "#" * 900),
        read=lambda data, _f: booted(
            [
                tree(
                    {
                        "boot/grub/grub.cfg": "load_env\nset default=$saved_entry\n" + MENU,
                        "boot/grub/grubenv": data,
                        "k": "k",
                        "i": "i",
                    },
                    1,
                    "gpt",
                    UUID,
                )
            ]
        ),
        words=words("saved_entry= next_entry= default= root= prefix= blsdir= kernelopts="),
    ),
    "bls": Reader(
        seeds=given("title a\nversion 1.2-3\nlinux /k\ninitrd /i\noptions root=x $a ${b}\n"),
        read=menu_at("loader/entries/m-1+1-1.conf", "loader/loader.conf"),
        words=words(
            "title linux initrd options version sort-key efi architecture machine-id default"
            " $tuned_params $kernelopts grub_users id"
        ),
    ),
    "menu.lst": Reader(
        seeds=given(
            "default 0\nfallback 1\ntitle a\nroot (hd0,0)\nkernel /k x\ninitrd /i\n"
            "title b\nuuid 1\nkernel (hd0,0)/k\nmodule /i\n"
        ),
        read=menu_at("boot/grub/menu.lst"),
        words=words(
            "default saved fallback title root kernel initrd configfile uuid find --set-root"
            " timeout module boot map (hd0,0) (hd0) /boot/grub/menu.lst"
        ),
    ),
    "regex": Reader(
        seeds=given("(a|b)*c{2,3}[[:alpha:]]+\nabcc", "^(.*)(a+)+$\naaaaaaaaaaaaaaab"),
        read=read_regex,
        words=words("( ) * + ? {2,3} {255} [[:alpha:]] [^a] \\1 | ^ $ ."),
        errors=(VmclonerError, BadExpression),
    ),
    "extlinux": Reader(
        seeds=given("DEFAULT a\nLABEL a\nLINUX /k\nINITRD /i\nAPPEND x\n"),
        read=menu_at("boot/extlinux/extlinux.conf"),
        words=words("DEFAULT LABEL KERNEL LINUX INITRD APPEND INCLUDE FDT /k"),
    ),
    "disks": Reader(seeds=mbr_and_files, read=read_disk),
    "qcow2": Reader(
        seeds=qcow2_images,
        read=read_qcow2,
        words=[b"QFI\xfb", struct.pack(">Q", 1 << 63 | 65536), struct.pack(">Q", 1 << 62 | 512)],
        errors=(VmclonerError, qcow2.Refused),
    ),
    "packed images": Reader(
        seeds=packed_images,
        read=read_packed,
        words=[
            b"ustar",
            b"\0" * 12,
            b"00000001000",
            b"7777777777",
            b"../../etc/passwd",
            b".ovf",
            b"<!ENTITY",
            b"ovf:href=",
            b"chunkSize='1'",
            b"\xfd7zXZ\0",
            b"\x1f\x8b\x08",
            b"BZh9",
        ],
    ),
    "pxelinux": Reader(
        seeds=given(
            "DEFAULT a\nPROMPT 0\nTIMEOUT 50\nLABEL a\nMENU LABEL x\nKERNEL k\nAPPEND i\n"
            "MENU BEGIN m\nLABEL b\nLOCALBOOT 0\nMENU DEFAULT\nMENU END\nINCLUDE b\n",
            "DEFAULT a\nONERROR b\nLABEL a\nLINUX k\nINITRD i,j\nAPPEND x y\nIPAPPEND 2\n"
            "LABEL b\nMENU HIDE\nKERNEL k\nAPPEND -\n",
            "UI menu.c32\nMENU INCLUDE a x\nONTIMEOUT a\nTEXT HELP\nx\nENDTEXT\nLABEL a\n",
        ),
        read=read_syslinux,
        words=words(
            "DEFAULT LABEL KERNEL LINUX INITRD APPEND INCLUDE MENU BEGIN END DEFAULT HIDE GOTO"
            " EXIT TEXT HELP ENDTEXT ONTIMEOUT ONERROR TOTALTIMEOUT IPAPPEND SYSAPPEND UI"
            " PROMPT LOCALBOOT SEPARATOR ALLOWOPTIONS NOESCAPE IMPLICIT KBDMAP a b"
        ),
    ),
    "ipxe": Reader(
        seeds=given(
            "#!ipxe\nset a 1\n:l\ninc a\niseq ${a} 9 || goto l\nkernel k ${mac:hexhyp} x\n"
            "initrd --name i i /x mode=755\nboot\n",
            "#!ipxe\nmenu x\nitem --gap y\nitem a b\nchoose --timeout 9 --default a c\n"
            "goto ${c}\n:a\nchain b || chain --replace a || exit 1\n",
        ),
        read=read_ipxe,
        words=words(
            "kernel initrd boot chain goto set clear inc iseq isset menu item choose imgargs"
            " imgfree imgfetch imgexec imgselect module prompt exit sanboot cpuid || && ;"
            " --name --timeout ${net0/mac:hexhyp} ${a:string} ${a:hexraw} a:hex a:uint32"
        ),
    ),
    "dhcp": Reader(
        seeds=lambda _f: [
            reply(b"\x35\x01\x02\x36\x04\x0a\x4d\x00\x01\x43\x03k\0\0\xff", checksum=False),
            reply(
                b"\x34\x01\x03\x35\x01\x02\x43\x02a/\xff",
                file=b"\x43\x02b/\xff",
                sname=b"x",
                checksum=False,
            ),
        ],
        read=read_packet,
        words=[b"\x34\x01\x03", b"\xff", b"\x43\x00", b"\x79\x05"],
        errors=(VmclonerError, Malformed),
    ),
    "tftp": Reader(
        seeds=given(
            b"\0\6tsize\x005\0blksize\x008\0--\0\3\0\1abcdefgh--\0\3\0\2ab",
            b"\0\3\0\1abc",
            b"\0\6tsize\x0010\0blksize\x008\0--\0\3\0\1abcdefgh--\0\3\0\2ab",
            b"\0\6windowsize\x004\0blksize\x008\0--\0\3\0\1abcdefgh--\0\3\0\2abcdefgh--\0\3\0\3",
            b"\0\5\0\1no\0",
            b"\0\6windowsize\x002\0--\0\3\0\2x--\0\5\0\3y\0",
        ),
        read=read_tftp,
        words=[b"--", b"\0\3", b"\0\5", b"\0\6", b"blksize\0", b"tsize\0", b"windowsize\0"],
    ),
    "locations": Reader(
        seeds=given("10.0.0.2::/a/b\nhttp://h:80/c d", "a/b\ntftp://h/x"),
        read=read_location,
        words=words("http:// https:// tftp:// :: .. : // [::1] file:///etc/passwd"),
    ),
    "xl.cfg": Reader(
        seeds=given(XL, HVM),
        mutate=reshaped,
        read=read_xl,
        words=words(
            "[ ] ( ) , = += # disk vif kernel ramdisk bootloader builder hvm pv pvh memory"
            " maxmem vcpus file: phy: tap: cdrom model= target= ----"
        ),
    ),
    "cloud-init": Reader(
        seeds=given(
            "#cloud-config\na: [1, {b: c}]\n",
            "#!/bin/sh\nx\n",
            "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\n"
            "Content-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\nYTog\n--x--\n",
            "#cloud-config\na0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 9)),
        ),
        read=read_documents,
        words=words(
            "#cloud-config #include #!/ &a *a << : - [ { !!python/object: !!binary !!timestamp"
            " 2001-99-99 0x 1:2:3 .inf MIME-Version: charset=x charset=utf-16 boundary="
            " message/rfc822 quoted-printable uuencode =?utf-7?b?x?= filename*="
        ),
    ),
    "settings": Reader(
        seeds=given(SETTINGS, SETTINGS + "address = 'x'\n", "[defaults]\nhost = 'x'\n[hosts.x]\n"),
        mutate=reshaped,
        read=in_file("vmcloner.toml", lambda path: Settings.load(path).host()),
        words=words(
            "[[ ]] = true 1979-05-27T07:32:00Z 9223372036854775808 nan {a=1} [hosts.x] state"
        ),
    ),
    "templates": Reader(
        seeds=given(TEMPLATE, BUILT, 'extends = "a"\n----\nextends = "t"\n'),
        mutate=reshaped,
        read=read_template,
        words=words(
            "[[ ]] = true 1979-05-27 99999999999999999999 nan {a=1} extends kernel xml [domain]"
            ' path = "../../../etc/passwd" {{ }} size url sha256'
        ),
    ),
    "values.toml": Reader(
        seeds=given('[web-1]\na = 1\nmemory = "1GiB"\n[2]\nvcpus = 2\nb = "é"\n[web-30]\n'),
        mutate=reshaped,
        read=in_file("v.toml", lambda path: values_file.read_values(path, "web")),
        words=words("[ ] = memory vcpus name 99999999999999999999 1979-05-27 ٣ ²"),
    ),
    "values.csv": Reader(
        seeds=given('clone,a,memory,vcpus\nweb-1,x,1GiB,2\n2,"y""z",,\n30,é,1,4\n'),
        mutate=reshaped,
        read=in_file("v.csv", lambda path: values_file.read_values(path, "web")),
        words=words('clone index name , "" memory vcpus ٣ ²'),
    ),
    "names": Reader(
        seeds=given("web\nweb-3\nweb-[1-10,15]", "db-[1-10/2],c-1", "a-b-7\na-[7-9]\nc"),
        mutate=reshaped,
        read=read_names,
        words=words("[ ] - , / [1-999999] @all ! ^ & * 0 00 99999999999 KiB GiB ٣ ² 1e9"),
    ),
    "placeholders": Reader(
        seeds=given(
            "{{ name }} {% for m in macs %}{{ m|upper }}{% endfor %}",
            "{{ index + 1 }} {{ '%03d' % index }} {{ macs[0].replace(':', '') }}",
        ),
        read=read_placeholders,
        words=words(
            "{{ }} {% %} {# #} for in range(99999) * ** 999999 |join |format |pprint"
            " .__class__ if else loop.index macro set ~ |batch(3) |center(99999) '%9999999d'"
            " |indent(9999) |wordwrap(1) |urlize |tojson namespace() cycler lipsum()"
        ),
    ),
    "labels": Reader(
        seeds=lambda _f: [
            "\n".join(f"{k}={v}" for k, v in make_labels().to_mapping().items()).encode()
        ],
        read=read_labels,
        words=words("version= index= fleet= 99999999999999 ² ٣ 1_0"),
    ),
    "domain XML": Reader(
        seeds=given(
            "<domain type='kvm' id='3'><name>web-1</name><uuid>" + UUID + "</uuid><metadata>"
            f"<v:clone xmlns:v='{domain_xml.NAMESPACE}' "
            + " ".join(f"{k}='{v}'" for k, v in make_labels().to_mapping().items())
            + "/></metadata><os><nvram>/x</nvram></os><devices><disk device='disk'>"
            "<source file='/x'/></disk><interface type='network'><mac address='A'/>"
            "<source network='n'/></interface></devices></domain>"
        ),
        read=read_domain,
        words=words(
            "<!DOCTYPE <!ENTITY SYSTEM file:///etc/passwd &lt; &x; %41 %ED%A0%80 %FF <![CDATA[ ]]>"
            " <?xml encoding='utf-16'?> id='0'"
        ),
    ),
    "records": Reader(
        seeds=record_seeds,
        mutate=reshaped,
        read=read_record,
        words=words(
            'null true {} [] "uuid" "macs" "seed" "identity" "labels" 1e999 NaN \\ud800 -1'
        ),
    ),
    "LVM text": Reader(
        seeds=lvm_texts,
        read=read_lvm_text,
        words=words(
            "{ } [ ] = # , segment1 thin-pool thin type stripes tags 99999999999999999999 id"
        ),
    ),
    "LVM tags": Reader(
        seeds=lambda _f: ["\n".join(tags.encode(make_labels().to_mapping())).encode()],
        read=read_lvm_tags,
        words=words("vmcloner vmcloner/ = & &FF &C3 / version=1"),
    ),
    "LVM disks": Reader(
        seeds=lvm_disks,
        read=read_lvm_disk,
        words=[
            b"LABELONE",
            b"LVM2 001",
            b" LVM2 x[5A%r0N*>",
            b"\x20\0\0\0",
            b'device = "pv"',
            b'id = "',
            b"\nlogical_volumes {",
            bytes(8),
            bytes(16),
        ],
    ),
}
"""Readers by name. Outside of CI, those of file systems without mkfs here are left out."""
if shutil.which("mkfs.btrfs") or os.environ.get("CI"):
    READERS["btrfs"] = Reader(seeds=btrfs, read=read_disk)
if shutil.which("mkfs.xfs") or os.environ.get("CI"):
    READERS["xfs"] = Reader(seeds=xfs, read=read_disk)
