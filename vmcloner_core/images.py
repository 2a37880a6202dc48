"""Obtain a template's disk image from a file, a URL or an image builder, and check it.

An image is hostile input: it may be truncated, have a wrong suffix, or name files on the host as
its backing file. Such images are refused here, before any storage backend or QEMU reads them. Those
that come packed or in a foreign format are first unpacked (:mod:`vmcloner_core.unpacking`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import attrs

from vmcloner_core import pulling, qcow2, unpacking, user_folders
from vmcloner_core.downloads import fetch
from vmcloner_core.drivers import ImageBuilder, ImageFile
from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.extents import data_runs, length, nonzero_pieces
from vmcloner_core.model import Host, ImageFormat, ImageSource, Progress, Template
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner, LocalRunner
from vmcloner_core.trusted_files import make_folder
from vmcloner_core.units import MAX_SIZE

BLOCK = 1024**2
_ZEROS = bytes(BLOCK)
MAX_HOLES = 4 * 1024**3
"""Bytes of a file's holes that are hashed as zeros; with more, holes are left out."""
DRAFT_PREFIX = ".{}-"
"""How the folders begin that are filled for a template; the lock ``template/NAME`` is held then."""
_SUFFIXES: dict[str, Literal["raw", "qcow2"]] = {
    ".qcow2": "qcow2",
    ".qcow": "qcow2",
    ".raw": "raw",
}
EITHER = ".img"
"""The suffix that says nothing: distributions use it for raw and for qcow2."""


@contextlib.contextmanager
def obtained(
    template: Template,
    builder: ImageBuilder | None,
    host: Host,
    progress: Progress,
    runner: CommandRunner | None = None,
) -> Iterator[ImageFile]:
    """Yield the checked image of a template; what was downloaded or unpacked is removed afterwards.

    :param builder: the template's image builder, if its source names one.
    :param runner: runs what reads foreign formats; None for this machine's.
    """
    if builder is not None:
        yield build(builder, template.folder, progress)
        return
    with contextlib.ExitStack() as stack:

        def folder() -> Path:
            with translated(host.templates):
                make_folder(host.templates)
                draft = DRAFT_PREFIX.format(template.name)
                made = tempfile.TemporaryDirectory(prefix=draft, dir=host.templates)
            return Path(stack.enter_context(made))

        source = template.image
        pulling.check(template)
        there = pulling.find(source)
        if there is not None:
            source = there.as_source(source.format)
        elif source.url is not None:
            source = download(source, folder(), progress)
        yield _plain(source, folder, runner or LocalRunner(), progress)


def _plain(
    source: ImageSource, folder: Callable[[], Path], runner: CommandRunner, progress: Progress
) -> ImageFile:
    """Return the checked image at ``source.path``, unpacked and converted if it needs to be.

    Its digest is that of the file that was given.

    :param folder: makes a folder for what is unpacked.
    """
    path = source.path
    assert path is not None  # noqa: S101 - the caller chose by it
    if _packing(source) is None:
        return from_file(source, progress)
    with _readable(path) as stream:
        digest = _checked_digest(stream, source, progress)
    found = unpacking.unpack(path, folder(), runner, progress, source.format)
    plain = attrs.evolve(source, path=found.path, format=found.format, sha256=None)
    try:
        image = from_file(plain, progress, digest)
    except InvalidRequest as error:
        reason = error.message.removeprefix(f"{found.path}: ")
        raise InvalidRequest(f"{path}: the image in it {reason}", hint=error.hint) from error
    return image


def _packing(source: ImageSource) -> str | None:
    """Return what the file at ``source.path`` is to be unpacked from or converted, None if nothing.

    :raises InvalidRequest: its name or its format says otherwise, or it can't be imported.
    """
    path = source.path
    assert path is not None  # noqa: S101 - the caller chose by it
    kind = _kind_of(path)
    if kind is None or path.is_block_device():  # a guest may have written what a device holds
        return None
    named = _SUFFIXES.get(path.suffix.lower())
    if named is not None and kind != "qcow":
        what = unpacking.CONVERTED.get(kind, kind)
        raise InvalidRequest(
            f"{path}: is {what}, though its name says {named}", hint="name it as what it is"
        )
    unpacking.check_kind(kind, path, source.format)
    return kind


def _kind_of(path: Path) -> str | None:
    """Return what a file is packed in, None if it is not or can't be read."""
    try:
        return unpacking.kind_of(path)
    except OSError:
        return None  # reported where it is opened as an image


def from_file(source: ImageSource, progress: Progress, digest: str | None = None) -> ImageFile:
    """Return the checked image at ``source.path``, which is raw or qcow2.

    :param digest: if it is known without reading the whole image.
    :raises NotFound: the file does not exist.
    :raises InvalidRequest: the image is invalid; the message names the file and the reason.
    """
    path = source.path
    assert path is not None  # noqa: S101 - the caller chose by it
    with _readable(path) as stream:
        kind, size = inspect(stream, path, source.format)
        digest = digest or _checked_digest(stream, source, progress)
    return ImageFile(path=path, format=kind, size=size, digest=digest)


def check_file(source: ImageSource) -> str:
    """Check the image file at ``source.path`` without reading all of it; returns what it is.

    A packed file, or one of a foreign format, is not unpacked.

    :raises NotFound: the file does not exist. :raises InvalidRequest: it can't be imported.
    """
    path = source.path
    assert path is not None  # noqa: S101 - the caller chose by it
    with _readable(path) as stream:
        kind = _packing(source)
        if kind is None:
            return inspect(stream, path, source.format)[0]
        return unpacking.CONVERTED.get(kind, kind)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """Open an image file.

    :raises NotFound: it does not exist. :raises InvalidRequest: it can't be read, or is no file.
    """
    try:
        with open(path, "rb", opener=_nonblocking) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # a logical volume is allowed
                raise InvalidRequest(f"{path}: neither a file nor a block device")
            yield stream
    except FileNotFoundError as error:
        raise NotFound(
            f"image {path} doesn't exist", hint="use template import --image FILE_OR_URL"
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error


def _checked_digest(stream: BinaryIO, source: ImageSource, progress: Progress) -> str:
    """Return the digest of an image file.

    :raises InvalidRequest: the source says another one.
    """
    digest = _digest(stream, source.sha256, progress)
    wanted = source.sha256 and source.sha256.lower()
    if wanted is not None and digest != f"sha256:{wanted}":
        raise InvalidRequest(f"{source.path}: sha256 is {digest.partition(':')[2]}, not {wanted}")
    return digest


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a FIFO must not block


def _digest(stream: BinaryIO, sha256: str | None, progress: Progress) -> str:
    """Return the digest of a file's bytes.

    :param sha256: what it should be. Without one, a file with very large holes has a digest of its
        other parts: a terabyte of zeros takes many minutes to hash.
    """
    fd = stream.fileno()
    holes = length(fd) - sum(end - start for start, end in data_runs(fd))
    if sha256 is None and holes > MAX_HOLES:
        return f"sparse-sha256:{hash_parts(fd, progress)}"
    return f"sha256:{_hash_all(fd, progress)}"


def _hash_all(fd: int, progress: Progress) -> str:
    """Return the SHA-256 of all bytes of a file; its holes are not read."""
    digest, done, total = hashlib.sha256(), 0, length(fd)
    for start, end in itertools.chain(data_runs(fd), [(total, total)]):
        while done < end:
            if done < start:
                piece = _ZEROS[: start - done]
            else:
                piece = os.pread(fd, min(BLOCK, end - done), done)
            if not piece:
                raise OSError(errno.EIO, "became shorter while it was read")
            digest.update(piece)
            done += len(piece)
            progress(done, total)
    return digest.hexdigest()


def hash_parts(fd: int, progress: Progress) -> str:
    """Return the SHA-256 of a file's length and of its parts that are not zeros.

    It is the same for files of the same bytes, wherever their holes are.
    """
    total = length(fd)
    digest = hashlib.sha256(total.to_bytes(8, "big"))
    for offset, piece in nonzero_pieces(fd):
        digest.update(offset.to_bytes(8, "big"))
        digest.update(piece)
        progress(offset + len(piece), total)
    progress(total, total)
    return digest.hexdigest()


def download(source: ImageSource, folder: Path, progress: Progress) -> ImageSource:
    """Download ``source.url`` to a file in ``folder``; return the source with that file.

    :raises InvalidRequest: there is no sha256 to verify it with.
    :raises HostCommandError: the server does not respond, or does not send the whole file.
    :raises NotEnoughResources: it is larger than the free space in ``folder``.
    """
    assert source.url is not None  # noqa: S101 - the caller chose by it
    if source.sha256 is None:
        raise InvalidRequest(f"image url {source.url}: needs a sha256", hint="give it as --sha256")
    path = folder / (source.url.rpartition("/")[2].partition("?")[0] or "image")
    fetch(source.url, path, progress)
    return attrs.evolve(source, url=None, path=path)


def build(builder: ImageBuilder, folder: Path, progress: Progress) -> ImageFile:
    """Return the image that a builder makes in ``folder``; rebuild it only if it would differ.

    The folder appears complete or not at all.
    """
    fingerprint = builder.fingerprint()
    with translated(folder):
        fill(builder, fingerprint, folder, progress)
        image = folder / (folder / ".image").read_text()
    return from_file(ImageSource(path=image), progress, _built_digest(fingerprint))


def _built_digest(fingerprint: str) -> str:
    return f"sha256:{hashlib.sha256(fingerprint.encode()).hexdigest()}"


def known_digest(template: Template, builder: ImageBuilder | None) -> str:
    """Return the digest of a template's image without reading it; empty if that isn't known."""
    if builder is not None:
        there = up_to_date(builder, template.folder)
        return _built_digest(builder.fingerprint()) if there else ""
    pulled = pulling.find(template.image)
    source = template.image if pulled is None else pulled.as_source(template.image.format)
    return f"sha256:{source.sha256.lower()}" if source.sha256 else ""


def up_to_date(builder: ImageBuilder, folder: Path) -> bool:
    """Tell whether :func:`build` would find its image made."""
    with translated(folder):
        stamp = folder / ".fingerprint"
        return stamp.exists() and stamp.read_text() == builder.fingerprint()


def fill(builder: ImageBuilder, fingerprint: str, folder: Path, progress: Progress) -> None:
    """Have a builder fill a folder, unless it has this fingerprint: complete or not at all."""
    kind = f"{type(builder).__module__}.{type(builder).__qualname__}"
    if not _is_stamped(folder, fingerprint):
        make_folder(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX.format(folder.name), dir=folder.parent))
        try:
            if not _shared(kind, fingerprint, folder.parent, made):
                image = builder.build(made, progress)
                (made / ".image").write_text(image.relative_to(made).as_posix())
                (made / ".builder").write_text(kind)
            (made / ".fingerprint").unlink(missing_ok=True)
            (made / ".fingerprint").write_text(fingerprint)
            for path in (made, *made.rglob("*")):  # nobody else may write there, whatever the umask
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~0o022)
            made.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _is_stamped(folder: Path, fingerprint: str) -> bool:
    stamp = folder / ".fingerprint"
    return stamp.exists() and stamp.read_text() == fingerprint


def _shared(kind: str, fingerprint: str, built: Path, made: Path) -> bool:
    """Fill a folder with what the same builder made of the same for another template.

    These are hard links: nobody writes to such files. Returns whether there was such a template.
    """
    for other in sorted(built.iterdir()):
        mark = other / ".builder"
        try:
            if mark.is_file() and mark.read_text() == kind and _is_stamped(other, fingerprint):
                known = other.stat().st_ino
                shutil.copytree(
                    other, made, symlinks=True, copy_function=os.link, dirs_exist_ok=True
                )
                if other.stat().st_ino == known:  # else another run replaced it meanwhile
                    return True
        except OSError:
            pass  # another run removes it
        for left in made.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return False


# --- formats ------------------------------------------------------------------------------------


def inspect(
    stream: BinaryIO, path: Path, claimed: str | None
) -> tuple[Literal["raw", "qcow2"], int]:
    """Return an image's format and virtual size in bytes.

    The template or the file name determines the format; otherwise it is raw. What a guest wrote at
    the start of its disk never changes it. The content is read only to refuse an image that
    contradicts its format, and for ``.img``, which doesn't say one.

    :param claimed: the format in the template; None to use the file's suffix.
    :raises InvalidRequest: it has another format, is truncated, or refers to another file.
    """
    stream.seek(0)
    found: Literal["raw", "qcow2"]
    found = "qcow2" if stream.read(4) == qcow2.MAGIC else "raw"
    suffix = path.suffix.lower()
    expected = claimed or (found if suffix == EITHER else _SUFFIXES.get(suffix))
    kind = _kind_of(path)
    if kind is not None and not (kind == "qcow" and expected == "qcow2"):
        raise InvalidRequest(
            f"{path}: is {unpacking.CONVERTED.get(kind, kind)}, not raw or qcow2",
            hint="vmcloner template import converts it",
        )
    if found != (expected or "raw"):
        whose = "format" if claimed else "name"
        raise InvalidRequest(
            f"{path}: is {found}, though its {whose} says {expected}"
            if expected
            else f"{path}: is {found}, which neither its name nor its template says",
            hint=f'if that is right: name it *.{found}, or say format = "{found}" in [image] '
            f"(template import: --image-format {found})",
        )
    if found == "qcow2":
        return found, _inspect_qcow2(stream, path)
    if claimed is None:
        unpacking.check_name(path)
    size = stream.seek(0, os.SEEK_END)
    if size == 0 or size % 512:
        raise InvalidRequest(f"{path}: truncated: {size} bytes are no whole number of sectors")
    return found, size


def _inspect_qcow2(stream: BinaryIO, path: Path) -> int:
    end = stream.seek(0, os.SEEK_END)

    def read(offset: int, length: int) -> bytes:
        if offset >= end:  # may be beyond the largest possible offset
            return b""
        stream.seek(offset)
        return stream.read(length)

    try:
        header = qcow2.read_header(read)
        if header.backing is not None:
            raise InvalidRequest(
                f"{path}: has a backing file, which could name any file of this host",
                hint="flatten it where it comes from: qemu-img convert -O qcow2",
            )
        if header.corrupt:
            raise InvalidRequest(f"{path}: is marked corrupt", hint="qemu-img check -r all")
        if not 0 < header.size <= MAX_SIZE:
            raise InvalidRequest(f"{path}: claims a size that is out of range")
        qcow2.check_tables(header, read, end)
    except qcow2.Refused as error:
        raise InvalidRequest(
            f"{path}: {error}", hint="make it anew: qemu-img convert -f qcow2 -O qcow2 OLD NEW"
        ) from error
    return header.size


def source_of(
    text: str, sha256: str | None, said: ImageFormat | None, own: ImageSource
) -> ImageSource:
    """Return the source for a path or an http(s) URL that replaces a template's own.

    :param said: the image's format, if that is said. Otherwise it is the template's, unless the
        name says one.
    """
    name = text.rpartition("/")[2].partition("?")[0] if "://" in text else text
    suffix = Path(name).suffix.lower()
    known = suffix in _SUFFIXES or unpacking.is_named(suffix)
    format = said or (None if known else own.format)  # noqa: A001
    if "://" in text:
        return ImageSource(url=text, sha256=sha256, format=format)
    return ImageSource(path=user_folders.expanded(text).absolute(), sha256=sha256, format=format)
