"""Unpack images that come compressed, in an archive or in a foreign format, into raw or qcow2.

Only for files that an administrator names at an import, and only into a folder of the import's
own: a file that a guest writes is never opened in a format that its content chose. What is read
here is hostile: each layer is bounded in size, ratio and time, names in archives are never used as
paths, and qemu-img reads foreign formats contained (:mod:`vmcloner_core.contained`).

OVF: https://www.dmtf.org/standards/ovf. Vagrant's boxes:
https://developer.hashicorp.com/vagrant/docs/boxes/format
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import shutil
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import attrs

from vmcloner_core import contained, qcow2
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotEnoughResources, shown
from vmcloner_core.model import ImageFormat, Progress
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import MAX_SIZE, format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LAYERS = 4
"""Layers of one image, as in ``disk.ova.xz``: xz, tar, VMDK."""
MAX_MEMBERS = 1000
MAX_DESCRIPTION = 1024**2
"""Bytes of an archive's own description (OVF, ``metadata.json``)."""
MAX_HEADER = 64 * 1024
"""Bytes of one header of an archive: names of 4 GiB could be said there."""
MAX_HEADERS_SECONDS = 60.0
"""Of reading an archive's headers."""
MAX_MEMORY = 256 * 1024**2
"""Bytes that unpacking xz may take: ``xz -9`` needs 65 MiB, and a hostile file says 4 GiB."""
MAX_RATIO = 1000
FREE_RATIO = 4 * 1024**3
"""Bytes that may come out whatever the ratio: an empty disk is small when it is compressed."""
MAX_SECONDS = 3600.0
"""Of unpacking one layer."""
RESERVE = 64 * 1024**2
"""Bytes that are left free on the file system."""
HEAD = 512
_CHUNK = 1024**2
_BLOCK = 65536
_ZEROS = bytes(_BLOCK)

_COMPRESSED = {"gzip", "xz", "bzip2", "zstd"}
_OPEN: dict[str, Callable[..., Any]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "zstd": zstd.open,
}
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"BZh", "bzip2"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (257, b"ustar", "tar"),
    (0, b"KDMV", "vmdk"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, qcow2.MAGIC + b"\0\0\0\1", "qcow"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"# Disk Descriptor", "VMDK descriptor"),
    (0, b"COWD", "VMDK of ESX"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"LZIP", "lzip"),
    (0, b"\x89LZO\0", "lzop"),
    (0, b"\x5d\0\0", "lzma"),
    (0, b"MSWIM\0\0\0", "WIM"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "E01"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format", "cloop"),
    (0, b"!<arch>\n", "ar"),
    (0, b"\xed\xab\xee\xdb", "rpm"),
)
CONVERTED = {
    "vmdk": "VMDK",
    "vdi": "VDI",
    "vhdx": "VHDX",
    "vpc": "VHD",
    "qed": "QED",
    "qcow": "qcow (version 1)",
    "parallels": "Parallels",
}
"""Formats that qemu-img converts, by its name for them."""
_NO_BACKING = {"vmdk", "qed", "qcow"}
_ADVICE = {
    "VMDK descriptor": "it names other files: give the disk as one file "
    "(qemu-img convert -O qcow2, or export an OVA)",
    "VMDK of ESX": "convert it where it comes from: vmkfstools -i, or export an OVA",
    "WIM": "it holds files, not a disk",
}
_NAMED = {".vmdk": "VMDK", ".vdi": "VDI", ".vhdx": "VHDX", ".vhd": "VHD", ".qed": "QED",
          ".hdd": "Parallels", ".ova": "OVA", ".box": "box", ".tar": "tar", ".tgz": "gzip",
          ".txz": "xz", ".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".bz2": "bzip2", ".zip": "zip",
          ".7z": "7z", ".rar": "rar", ".lz4": "lz4", ".dmg": "DMG", ".wim": "WIM",
          ".ovf": "OVF"}  # fmt: skip
_PACKED_SUFFIXES = {".gz", ".xz", ".zst", ".bz2", ".zstd"}
_DISKS = (".raw", ".img", ".qcow2", ".qcow", ".vmdk", ".vdi", ".vhd", ".vhdx", ".qed")


@attrs.frozen(kw_only=True)
class Unpacked:
    """An image as a plain file.

    :param path: the file. :param format: ``raw`` or ``qcow2`` where it is known to be.
    """

    path: Path
    format: ImageFormat | None = None


def kind_of(path: Path) -> str | None:
    """Return what a file is packed in or which foreign format it has; None for raw and qcow2.

    :raises OSError: it can't be read.
    """
    with open(path, "rb", opener=_nonblocking) as stream:
        head = stream.read(HEAD)
        if path.suffix.lower() == ".vhd" and stream.seek(0, os.SEEK_END) >= HEAD:
            stream.seek(-HEAD, os.SEEK_END)  # of fixed size: it has only a footer
            if stream.read(8) == b"conectix":
                return "vpc"
    for offset, magic, kind in _MAGICS:
        if head.startswith(magic, offset) and (kind != "bzip2" or head[3:4].isdigit()):
            return kind
    return None


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO must not block


def check_name(path: Path) -> None:
    """Check that a file that is neither packed nor foreign isn't called so.

    :raises InvalidRequest: its name says another kind of file than its content.
    """
    kind = _NAMED.get(path.suffix.lower())
    if kind is not None:
        raise InvalidRequest(
            f"{path}: is no {kind} file, though its name says so",
            hint='if it is a raw disk: format = "raw" in [image], or --image-format raw',
        )


def unpack(
    path: Path,
    folder: Path,
    runner: CommandRunner,
    progress: Progress,
    wanted: ImageFormat | None = None,
) -> Unpacked:
    """Return the image in a file, unpacked and converted into ``folder`` as far as it needs to be.

    :param wanted: the format that the image has, if that is said.
    :raises InvalidRequest: it is damaged, holds no image or several, or has a format that can't be
        read; says what it is. :raises NotEnoughResources: there is no room for it.
    """
    first, name = path, PurePosixPath(path.name)
    for layer in range(MAX_LAYERS + 1):
        kind = kind_of(path)
        if kind is None:
            return Unpacked(path=path, format=wanted or _plain_format(path, name))
        if layer == MAX_LAYERS:
            break
        check_kind(kind, first, wanted)
        made = folder / f"layer{layer + 1}"
        made.mkdir()
        with translated(made):
            if kind in _COMPRESSED:
                name = PurePosixPath(name.stem if _is_packed(name) else name.name)
                target = made / f"image{name.suffix}"
                _decompressed(kind, path, first, target, progress)
            elif kind == "tar":
                name = _extracted(path, first, made, progress)
                target = made / f"image{name.suffix}"
            else:
                target = made / "image.raw"
                convert(kind, path, first, target, runner)
                name = PurePosixPath(target.name)
                wanted = "raw"
            if path != first:
                path.unlink()
        path = target
    raise InvalidRequest(f"{first}: packed in more than {MAX_LAYERS} layers")


def _is_packed(name: PurePosixPath) -> bool:
    return name.suffix.lower() in _PACKED_SUFFIXES


def _plain_format(path: Path, name: PurePosixPath) -> ImageFormat:
    """Return an unpacked file's format; only ``.raw`` and ``.qcow2`` say one by their name."""
    for named in ("raw", "qcow2"):
        if name.suffix.lower() == f".{named}":
            return "raw" if named == "raw" else "qcow2"
    with path.open("rb") as stream:
        return "qcow2" if stream.read(4) == qcow2.MAGIC else "raw"


def is_named(suffix: str) -> bool:
    """Tell whether a suffix, in lower case, is that of a packed file or of a foreign format."""
    return suffix in _NAMED


def check_kind(kind: str, first: Path, wanted: str | None) -> None:
    """Check that a file of a kind that :func:`kind_of` found can be imported.

    :param wanted: the format that the image is said to have.
    :raises InvalidRequest: it can't be; says what it is.
    """
    if kind in _COMPRESSED or kind == "tar":
        return
    if kind not in CONVERTED:
        raise InvalidRequest(
            f"{first}: is {kind}, which can't be imported",
            hint=_ADVICE.get(kind, "unpack it, and import the disk image in it"),
        )
    if wanted not in (None, kind):
        raise InvalidRequest(
            f"{first}: is {CONVERTED[kind]}, though its format says {wanted}",
            hint=f"leave the format out, or say {kind}",
        )


# --- bounded copies -----------------------------------------------------------------------------


def _copy(
    chunks: Iterator[bytes], target: Path, first: Path, packed: int, progress: Progress
) -> None:
    """Write what comes to a sparse file.

    :param packed: bytes that it is made from. :raises InvalidRequest: it is too much of these.
    """
    room = shutil.disk_usage(target.parent).free - RESERVE
    done, stored, due = 0, 0, time.monotonic() + MAX_SECONDS
    with target.open("xb") as stream:
        for chunk in chunks:
            for at in range(0, len(chunk), _BLOCK):
                block = chunk[at : at + _BLOCK]
                if block == _ZEROS[: len(block)]:
                    stream.seek(len(block), os.SEEK_CUR)
                else:
                    stored += stream.write(block)
            done += len(chunk)
            if done > MAX_SIZE or (done > FREE_RATIO and done > packed * MAX_RATIO):
                raise InvalidRequest(
                    f"{first}: expands to more than {MAX_RATIO} times its size",
                    hint="unpack it yourself, if that is right",
                )
            if stored > room:
                raise NotEnoughResources(
                    f"{first}: unpacked, it takes more than the {format_size(max(0, room))} that "
                    f"are free in {target.parent}"
                )
            if time.monotonic() > due:
                raise InvalidRequest(f"{first}: not unpacked within {MAX_SECONDS:.0f} s")
            progress(min(done, packed), packed)
        stream.truncate(done)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(functools.partial(stream.read, _CHUNK), b"")


def _unxz(packed: IO[bytes]) -> Iterator[bytes]:
    """Yield what a file's xz streams hold. Unlike lzma.open(), with a bound to the memory."""
    decoder, data = None, b""
    while data or (data := packed.read(_CHUNK)):
        if decoder is None:
            data = data.lstrip(b"\0")  # streams may be padded
            if not data:
                continue
            decoder = lzma.LZMADecompressor(memlimit=MAX_MEMORY)
        yield decoder.decompress(data, _CHUNK)
        while not decoder.eof and not decoder.needs_input:
            yield decoder.decompress(b"", _CHUNK)
        data = decoder.unused_data
        if decoder.eof:
            decoder = None
    if decoder is not None:
        raise EOFError


def _damages(pieces: Iterator[bytes], first: Path, kind: str) -> Iterator[bytes]:
    """Yield pieces; name the file if its content is damaged."""
    try:
        yield from pieces
    except EOFError as error:
        raise InvalidRequest(f"{first}: truncated: its {kind} data ends too early") from error
    except (
        *(gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, tarfile.TarError),
        *(ValueError, MemoryError),
    ) as error:
        raise InvalidRequest(f"{first}: damaged {kind} data: {shown(str(error), 200)}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InvalidRequest(f"{first}: damaged {kind} data: {error}") from error  # bz2's error


def _decompressed(kind: str, path: Path, first: Path, target: Path, progress: Progress) -> None:
    with path.open("rb") as packed, contextlib.ExitStack() as stack:
        if kind == "xz":
            pieces = _unxz(packed)
        else:
            pieces = _pieces(stack.enter_context(_OPEN[kind](packed, "rb")))
        _copy(_damages(pieces, first, kind), target, first, path.stat().st_size, progress)


# --- archives -----------------------------------------------------------------------------------


class _Archive(io.BufferedReader):
    """An archive's file. Headers are read with bounds, which tarfile lacks."""

    due = 0.0
    """When its headers must have been read, 0 once they are."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.due and not 0 <= (-1 if size is None else size) <= MAX_HEADER:
            raise tarfile.ReadError("a header is too long")
        if self.due and time.monotonic() > self.due:
            raise tarfile.ReadError("its headers take too long")
        return super().read(size)


def _extracted(path: Path, first: Path, folder: Path, progress: Progress) -> PurePosixPath:
    """Extract the one disk image in an archive; returns its name there."""
    try:
        with _Archive(io.FileIO(path)) as file, contextlib.ExitStack() as stack:
            file.due = time.monotonic() + MAX_HEADERS_SECONDS
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            members = _members(archive, first)
            file.due = 0
            chosen = _chosen(archive, members, first)
            stream = archive.extractfile(members[chosen])
            if stream is None:
                raise InvalidRequest(f"{first}: {shown(chosen)!r} in it is no file")
            name = PurePosixPath(chosen)
            suffix = name.suffix if name.suffix.lower() in _DISKS or _is_packed(name) else ""
            target = folder / f"image{suffix}"
            pieces = _damages(_pieces(stream), first, "tar")
            _copy(pieces, target, first, path.stat().st_size, progress)
            return PurePosixPath(f"{name.stem}{suffix}")
    except (
        *(tarfile.TarError, EOFError, ValueError),
        *(OverflowError, RecursionError, IndexError),  # by headers that tarfile doesn't check
    ) as error:
        raise InvalidRequest(f"{first}: damaged archive: {shown(str(error), 200)}") from error


def _members(archive: tarfile.TarFile, first: Path) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise InvalidRequest(f"{first}: has more than {MAX_MEMBERS} members")
        if member.isreg():
            found[member.name.removeprefix("./")] = member
    return found


def _chosen(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], first: Path) -> str:
    """Return the name of the disk image in an archive.

    :raises InvalidRequest: there is none, or more than one.
    """
    descriptions = [name for name in members if name.lower().endswith(".ovf")]
    if descriptions:
        disks = _ovf_disks(_text(archive, members[descriptions[0]], first), first)
    else:
        disks = [n for n in members if _looks_like_disk(PurePosixPath(n))]
    disks = list(dict.fromkeys(disks))
    if len(disks) == 1 and disks[0] in members:
        return disks[0]
    if len(disks) == 1:
        raise InvalidRequest(
            f"{first}: its description names {shown(disks[0], 80)!r}, which is missing"
        )
    listed = shown(", ".join(disks[:5] or list(members)[:5]), 200) or "nothing"
    number = f"{len(disks)} disks" if disks else "no disk image"
    raise InvalidRequest(
        f"{first}: an archive with {number} ({listed})",
        hint="unpack it (tar -xf), and import the disk image that you want",
    )


def _looks_like_disk(name: PurePosixPath) -> bool:
    if _is_packed(name):
        name = PurePosixPath(name.stem)
    return name.suffix.lower() in _DISKS and not name.name.startswith("._")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, first: Path) -> bytes:
    stream = archive.extractfile(member)
    content = stream.read(MAX_DESCRIPTION + 1) if stream is not None else b""
    if len(content) > MAX_DESCRIPTION:
        raise InvalidRequest(f"{first}: {shown(member.name, 80)!r} in it is too large")
    return content


def _ovf_disks(content: bytes, first: Path) -> list[str]:
    """Return the files of the disks that an OVF description names, in order."""
    try:
        # Decoded here: no encoding, declared or guessed from zeros by expat, may hide a word.
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InvalidRequest(f"{first}: its OVF description declares entities")
        root = ET.fromstring(text)  # noqa: S314 - without entities, and bounded
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InvalidRequest(f"{first}: its OVF description isn't XML: {error}") from error
    files: dict[str, dict[str, str]] = {}
    disks: list[str] = []
    for element in root.iter():
        tag = str(element.tag).rpartition("}")[2]
        own = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if tag == "File":
            files[own.get("id", "")] = own
        elif tag == "Disk" and own.get("fileRef"):
            disks.append(own["fileRef"])
    found = [files.get(reference, {}) for reference in disks]
    if any("chunkSize" in file for file in found):
        raise InvalidRequest(f"{first}: its disk is split into chunks, which isn't supported")
    return [file["href"] for file in found if "href" in file]


# --- foreign formats ----------------------------------------------------------------------------


def convert(kind: str, path: Path, first: Path, target: Path, runner: CommandRunner) -> None:
    """Write an image of a foreign format as a sparse raw file, by qemu-img, contained.

    Nothing is opened but the file itself: backing files are switched off, and the network and
    other files are out of reach.

    :raises InvalidRequest: qemu-img can't read it. :raises NotEnoughResources: no room for it.
    """
    options: dict[str, object] = {
        "driver": kind,
        "file": {"driver": "file", "filename": str(path.absolute())},
    }
    if kind in _NO_BACKING:
        options["backing"] = None
    source = "json:" + json.dumps(options)

    def run(
        *words: str, size: int = 0, seconds: float = 60.0, write: tuple[Path, ...] = ()
    ) -> bytes:
        argv = contained.command(
            ["qemu-img", *words],
            read=[path.resolve()],
            write=write,
            size=size,
            seconds=seconds,
        )
        return runner.run(argv, timeout=seconds).stdout

    if kind == "vmdk":
        _check_sparse(path, first)
    what = f"{first}: not readable as {CONVERTED[kind]}"
    try:
        # Runners keep what a command prints in files: a limit of 0 would be one on these.
        said = run("info", "--output", "json", source, size=_CHUNK)
        size = _virtual_size(said, kind, first)
        words = ("measure", "--output", "json", "-O", "qcow2", source)
        measured = json.loads(run(*words, size=_CHUNK, seconds=300))
        # For a raw target it counts holes too: see qemu_img.measure.
        tables = int(measured["fully-allocated"]) - size
        _check_room(int(measured["required"]) - max(0, tables), target, first)
        seconds = 300 + size / _SLOWEST
        target.touch()
        os.truncate(target, size)
        copy = ("convert", "-n", "--target-is-zero", "-O", "raw", source, str(target.resolve()))
        run(*copy, size=max(size, _CHUNK), seconds=seconds, write=(target.resolve(),))
    except (ValueError, KeyError, TypeError) as error:
        raise HostCommandError(f"{what}: no size in qemu-img's output") from error
    except HostCommandError as error:
        reason = error.message.rpartition(": ")[2].strip() or error.message
        raise InvalidRequest(
            f"{what}: {shown(reason, 200)}", hint="convert it where it comes from"
        ) from error


_SLOWEST = 8 * 1024**2
"""Bytes per second; a slower conversion is considered hung."""


def _check_sparse(path: Path, first: Path) -> None:
    """Check that a VMDK has a capacity: QEMU opens what the descriptor of another one names.

    Where the kernel has no Landlock, nothing else keeps it from that.
    """
    with path.open("rb") as stream:
        head = stream.read(20)
    if not int.from_bytes(head[12:20], "little"):
        raise InvalidRequest(f"{first}: keeps its data in other files, which is refused")


def _virtual_size(said: bytes, kind: str, first: Path) -> int:
    answer = json.loads(said)
    size = int(answer["virtual-size"])
    if answer.get("backing-filename") or answer.get("full-backing-filename"):
        raise InvalidRequest(
            f"{first}: has a backing file, which could name any file of this host",
            hint="flatten it where it comes from: qemu-img convert",
        )
    details = answer.get("format-specific", {}).get("data", {})
    extents = [extent.get("filename") for extent in details.get("extents", [])]
    if kind == "vmdk" and len(set(extents)) > 1:
        raise InvalidRequest(f"{first}: keeps its data in other files, which is refused")
    if not 0 < size <= MAX_SIZE or size % 512:
        raise InvalidRequest(f"{first}: claims a size that is out of range")
    return size


def _check_room(need: int, target: Path, first: Path) -> None:
    room = max(0, shutil.disk_usage(target.parent).free - RESERVE)
    if need > room:
        raise NotEnoughResources(
            f"{first}: converted, it takes up to {format_size(need)}; {format_size(room)} are free "
            f"in {target.parent}"
        )
