"""Where a template's disk image comes from: a file, a URL, or an image builder; and its checks.

An image is hostile input: it may be truncated, not what its name says, or name files of the host
as its backing file. All of that is refused here, before any storage backend or QEMU reads it.
qcow2's layout: docs/interop/qcow2.txt in QEMU's source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import attrs

from vmcloner_core.drivers import ImageBuilder, ImageFile
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotEnoughResources, NotFound
from vmcloner_core.model import Host, ImageSource, Progress, Template
from vmcloner_core.units import MAX_SIZE, format_size

BLOCK = 1024**2
CONNECT_TIMEOUT = 20.0
READ_TIMEOUT = 60.0
MAX_L1 = 4 * 1024**2
"""Entries of a qcow2's level 1 table: 32 MiB, QEMU's own limit."""
_FOREIGN = {
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"# Disk D": "VMDK",
    b"<<< ": "VDI",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_SUFFIXES: dict[str, Literal["raw", "qcow2"]] = {
    ".qcow2": "qcow2",
    ".qcow": "qcow2",
    ".raw": "raw",
    ".img": "raw",
}


@contextlib.contextmanager
def obtained(
    template: Template, builder: ImageBuilder | None, host: Host, progress: Progress
) -> Iterator[ImageFile]:
    """Give the checked image of a template; what had to be fetched for it is gone afterwards.

    :param builder: the template's image builder, where its source names one.
    """
    if builder is not None:
        yield build(builder, template.folder, progress)
        return
    if template.image.url is None:
        yield from_file(template.image, progress)
        return
    host.templates.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=host.templates) as folder:
        yield from_file(download(template.image, Path(folder), progress), progress)


def from_file(source: ImageSource, progress: Progress, digest: str | None = None) -> ImageFile:
    """Return the checked image at ``source.path``.

    :param digest: hexadecimal, where its maker knows a shorter way to it than reading it all.
    :raises NotFound: there is no such file.
    :raises InvalidRequest: it isn't what it should be; names file and reason.
    """
    path = source.path
    assert path is not None  # noqa: S101 - the caller chose by it
    try:
        with open(path, "rb", opener=_nonblocking) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # a logical volume is as good
                raise InvalidRequest(f"{path}: neither a file nor a block device")
            kind, size = inspect(stream, path, source.format)
            digest = digest or _digest(stream, progress)
    except FileNotFoundError as error:
        raise NotFound(
            f"image {path} doesn't exist", hint="give one by template import --image FILE_OR_URL"
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    if source.sha256 is not None and digest != source.sha256.lower():
        raise InvalidRequest(f"{path}: sha256 is {digest}, not {source.sha256.lower()}")
    return ImageFile(path=path, format=kind, size=size, digest=f"sha256:{digest}")


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO must not hang us


def _digest(stream: BinaryIO, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    total = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    while block := stream.read(BLOCK):
        digest.update(block)
        done += len(block)
        progress(done, total)
    return digest.hexdigest()


def download(source: ImageSource, folder: Path, progress: Progress) -> ImageSource:
    """Fetch ``source.url`` to a file in ``folder``, checked by its sha256; returns that source.

    :raises InvalidRequest: there is no sha256, or it doesn't match.
    :raises HostCommandError: the server doesn't answer, or not with the file.
    """
    import urllib3

    assert source.url is not None  # noqa: S101 - the caller chose by it
    if source.sha256 is None:
        raise InvalidRequest(f"image url {source.url}: needs a sha256", hint="give it as --sha256")
    path = folder / (source.url.rpartition("/")[2].partition("?")[0] or "image")
    timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
    try:
        with (
            urllib3.PoolManager(retries=urllib3.Retry(3, redirect=5), timeout=timeout) as pool,
            path.open("wb") as stream,
        ):
            answer = pool.request("GET", source.url, preload_content=False)
            if answer.status != 200:
                raise HostCommandError(f"{source.url}: the server answered {answer.status}")
            total = int(answer.headers.get("Content-Length", "0"))
            room = shutil.disk_usage(folder).free
            if total > room:
                raise NotEnoughResources(
                    f"{source.url}: {format_size(total)}, {format_size(room)} free in {folder}"
                )
            done = 0
            for block in answer.stream(BLOCK):
                stream.write(block)
                done += len(block)
                progress(done, total)
            if total and done != total:
                raise HostCommandError(f"{source.url}: truncated: {done} of {total} bytes")
    except urllib3.exceptions.HTTPError as error:
        raise HostCommandError(f"{source.url}: {error}") from error
    except OSError as error:
        raise HostCommandError(f"{path}: {error.strerror}") from error
    return attrs.evolve(source, url=None, path=path)


def build(builder: ImageBuilder, folder: Path, progress: Progress) -> ImageFile:
    """Return the image that a builder makes in ``folder``, made anew only where it would differ.

    The folder appears whole or not at all.
    """
    fingerprint = builder.fingerprint()
    stamp = folder / ".fingerprint"
    if not stamp.exists() or stamp.read_text() != fingerprint:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            image = builder.build(made, progress)
            (made / ".image").write_text(image.relative_to(made).as_posix())
            (made / ".fingerprint").write_text(fingerprint)
            made.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    image = folder / (folder / ".image").read_text()
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    return from_file(ImageSource(path=image), progress, digest)


# --- formats ------------------------------------------------------------------------------------


def inspect(
    stream: BinaryIO, path: Path, claimed: Literal["raw", "qcow2"] | None
) -> tuple[Literal["raw", "qcow2"], int]:
    """Return an image's format and virtual size in bytes.

    :param claimed: the format that it should have; None to go by the file's suffix.
    :raises InvalidRequest: it has another, is truncated, or refers to another file.
    """
    expected = claimed or _SUFFIXES.get(path.suffix.lower())
    stream.seek(0)
    head = stream.read(512)
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise InvalidRequest(
                f"{path}: is {name}, not raw or qcow2", hint="convert it with qemu-img convert"
            )
    found: Literal["raw", "qcow2"] = "qcow2" if head.startswith(b"QFI\xfb") else "raw"
    if expected is not None and found != expected:
        raise InvalidRequest(
            f"{path}: is {found}, though its {'format' if claimed else 'name'} says {expected}"
        )
    if found == "qcow2":
        return found, _inspect_qcow2(stream, path, head)
    size = stream.seek(0, os.SEEK_END)
    if size == 0 or size % 512:
        raise InvalidRequest(f"{path}: truncated: {size} bytes are no whole number of sectors")
    return found, size


def _inspect_qcow2(stream: BinaryIO, path: Path, head: bytes) -> int:
    if len(head) < 104:
        raise InvalidRequest(f"{path}: truncated in its header")
    version, backing, _, cluster_bits, size, crypt, l1_size, l1_offset, refcount = struct.unpack(
        ">IQIIQIIQQ", head[4:56]
    )
    if version not in (2, 3) or not 9 <= cluster_bits <= 21:
        raise InvalidRequest(f"{path}: not a qcow2 that this version reads")
    features = struct.unpack(">Q", head[72:80])[0] if version == 3 else 0
    if backing:
        raise InvalidRequest(
            f"{path}: has a backing file, which could name any file of this host",
            hint="flatten it where it comes from: qemu-img convert -O qcow2",
        )
    if features & 4:
        raise InvalidRequest(f"{path}: keeps its data in another file, which is refused")
    if features & 2:
        raise InvalidRequest(f"{path}: is marked corrupt", hint="qemu-img check -r all")
    if crypt:
        raise InvalidRequest(f"{path}: is encrypted, which is not supported")
    if not 0 < size <= MAX_SIZE or l1_size > MAX_L1:
        raise InvalidRequest(f"{path}: claims a size that is out of range")
    end = stream.seek(0, os.SEEK_END)
    if refcount >= end or _last_cluster(stream, path, l1_offset, l1_size, cluster_bits) >= end:
        raise InvalidRequest(f"{path}: truncated: its tables point beyond its {end} bytes")
    return int(size)


def _last_cluster(
    stream: BinaryIO, path: Path, l1_offset: int, l1_size: int, cluster_bits: int
) -> int:
    """Return the highest offset at which the image's tables say that a data cluster starts."""
    mask = (1 << 56) - 512
    cluster = 1 << cluster_bits
    highest = l1_offset
    packed = (1 << (62 - (cluster_bits - 8))) - 1

    def table(offset: int, entries: int) -> array[int]:
        stream.seek(offset)
        content = stream.read(entries * 8)
        if len(content) < entries * 8:
            raise InvalidRequest(f"{path}: truncated: its tables are cut off")
        values = array("Q", content)
        values.byteswap()
        return values

    extended = 2 if _extended_l2(stream) else 1
    for entry in table(l1_offset, l1_size):
        if not entry & mask:
            continue
        for value in table(entry & mask, cluster // 8)[::extended]:
            compressed = value >> 62 & 1  # its offset's width depends on the cluster's
            highest = max(highest, value & (packed if compressed else mask))
    return highest


def _extended_l2(stream: BinaryIO) -> bool:
    stream.seek(72)
    return bool(struct.unpack(">Q", stream.read(8))[0] & 16)


def source_of(text: str, sha256: str | None) -> ImageSource:
    """Return the source that a user named by a path or an http(s) URL."""
    if "://" in text:
        return ImageSource(url=text, sha256=sha256)
    return ImageSource(path=Path(text).expanduser().absolute(), sha256=sha256)
