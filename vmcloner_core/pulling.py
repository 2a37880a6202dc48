"""Pull the images of templates from their publishers into the user's cache.

The cache has one folder for each URL: the image, named by its published checksum; ``pulled.json``,
which says what it is; and, while it is fetched, a part of it. A pull that is cut off or killed goes
on with the same command. What was pulled is compared with its checksum at every use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from vmcloner_core import checksum_files, downloads, locks, signatures, user_folders
from vmcloner_core.checksum_files import Checksum
from vmcloner_core.errors import InvalidRequest, NotPulled
from vmcloner_core.model import ImageFormat, ImageSource, Outcome, Progress, Template
from vmcloner_core.os_errors import translated
from vmcloner_core.process import LocalRunner
from vmcloner_core.signatures import Verdict
from vmcloner_core.trusted_files import make_folder, read_file, replacing

log = logging.getLogger(__name__)
BLOCK = 1024**2
MAX_CHECKSUMS = 1024**2
"""Bytes of a file of checksums."""
_RECORD = "pulled.json"


@attrs.frozen(kw_only=True)
class PulledImage:
    """An image in the cache.

    :param url: its publisher's, without a mirror. :param path: the file, as it came.
    :param size: bytes. :param checksum: as published. :param sha256: of the file, hexadecimal.
    :param signature: what was found about the signature of its checksum, in words; empty if it has
        none.
    """

    url: str
    path: Path
    size: int
    checksum: Checksum
    sha256: str
    signature: str = ""

    def as_source(self, format: ImageFormat | None) -> ImageSource:  # noqa: A002 - the key
        """Return the source from which this file is imported, and checked once more."""
        return ImageSource(path=self.path, sha256=self.sha256, format=format)


def cache() -> Path:
    """Return the user's folder for images that were pulled."""
    return user_folders.cache() / "pulled"


def find(source: ImageSource) -> PulledImage | None:
    """Return what was pulled of a source's URL, None if it isn't here. Reads no image."""
    if source.url is None:
        return None
    folder = _folder(source.url)
    try:
        record = json.loads(read_file(folder / _RECORD, trusted=False))
        checksum = Checksum(record["algorithm"], record["digest"])
        if not all(re.fullmatch(r"[0-9a-f]{64,128}", record[k]) for k in ("digest", "sha256")):
            return None
        path = folder / _name(source.url, checksum)
        image = PulledImage(
            url=source.url,
            path=path,
            size=path.stat().st_size,
            checksum=checksum,
            sha256=record["sha256"],
            signature=str(record.get("signature", "")),
        )
    except (InvalidRequest, OSError, ValueError, KeyError, TypeError):
        return None  # a pull makes it anew
    pinned = source.sha256 is not None and source.sha256.lower() != image.sha256
    return None if pinned or image.size != record.get("size") else image


def check(template: Template) -> None:
    """Check that the image of a template is here, if it has to be pulled.

    :raises NotPulled: it isn't.
    """
    source, name = template.image, template.name
    if source.checksums is not None and find(source) is None:
        raise NotPulled(
            f"the image of template {name} is not here: {source.url}",
            hint=f"vmcloner template pull {name}, or create … --pull",
        )


def pull(template: Template, progress: Progress, mirror: str | None = None) -> Outcome[PulledImage]:
    """Download a template's image, unless what is here is what its publisher has now.

    :param mirror: a URL that replaces scheme and host of the image's URL and of its checksums'.
    :raises InvalidRequest: the image has no URL, the mirror is none, or the checksum doesn't match.
    :raises NotFound: the publisher's list has no checksum of the image.
    :raises HostCommandError: as :func:`vmcloner_core.downloads.resume`; the same call goes on.
    """
    source, name = template.image, template.name
    if source.url is None:
        way = (
            f"vmcloner image build {name}" if source.builder else f"vmcloner template import {name}"
        )
        raise InvalidRequest(f"the image of template {name} has no url to pull it from", hint=way)
    folder = _folder(source.url)
    with translated(cache()):
        make_folder(cache())  # the locks' own message speaks of the state folder

    def waiting(_lock: str) -> None:
        log.warning("waiting for another run that pulls %s", source.url)

    with locks.hold(cache(), [folder.name], waiting=waiting), translated(folder):
        wanted, verdict = published(source, mirror)
        there = find(source)
        if there is not None and there.checksum == wanted:
            if _digests(there.path, wanted, progress)[wanted.algorithm] == wanted.digest:
                known = attrs.evolve(there, signature=str(verdict))
                return Outcome(key=name, value=known, changed=False)
            (folder / _RECORD).unlink()
        make_folder(folder)
        image = _fetched(source.url, folder, wanted, str(verdict), progress, mirror)
        return Outcome(key=name, value=image)


def published(source: ImageSource, mirror: str | None = None) -> tuple[Checksum, Verdict]:
    """Return the checksum that an image has to have, by its template or its publisher's list.

    And what was found about the list's signature.

    :raises InvalidRequest, NotFound, HostCommandError: as :func:`pull`.
    """
    assert source.url is not None  # noqa: S101 - the caller chose by it
    if source.sha256 is not None:
        return Checksum("sha256", source.sha256.lower()), Verdict(b"")
    if source.checksums is None:
        raise InvalidRequest(
            f"image url {source.url}: needs a checksum",
            hint="give sha256, or the URL of its publisher's checksums, in [image]",
        )
    url = mirrored(source.checksums, mirror)
    if not url.startswith("https://"):
        raise InvalidRequest(f"{url}: checksums are fetched only over https", hint="https://…")
    verdict = _judged(source, url, downloads.read(url, MAX_CHECKSUMS), mirror)
    image = checksum_files.last_part(source.url)
    return checksum_files.find(verdict.content, url, image), verdict


def _judged(source: ImageSource, url: str, content: bytes, mirror: str | None) -> Verdict:
    """Check the signature of a file of checksums, if it has one.

    :raises InvalidRequest: it is wrong. :raises HostCommandError: it can't be fetched.
    """
    inside = signatures.is_cleartext(content)
    if not inside and source.signature is None and source.keyring is None:
        return Verdict(content)
    runner = LocalRunner()
    missing = signatures.lacking(runner, source.keyring)
    if missing or source.keyring is None:
        return Verdict(content, skipped=missing)
    signature = None
    if not inside and source.signature is None:
        raise InvalidRequest(
            f"{url}: is not signed, though the template names a keyring",
            hint="give signature, the URL of the signature, in [image], or remove keyring",
        )
    if not inside and source.signature is not None:
        where = mirrored(source.signature, mirror)
        signature = downloads.read(where, signatures.MAX_SIGNATURE)
    return signatures.check(runner, url, content, signature, source.keyring)


def mirrored(url: str, mirror: str | None) -> str:
    """Return a URL at a mirror, which replaces its scheme and its host.

    :raises InvalidRequest: the mirror is no http(s) URL.
    """
    if mirror is None:
        return url
    try:
        parts = urlsplit(mirror)
        usable = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        usable = None
    if not usable or parts.query or parts.fragment:
        raise InvalidRequest(
            f"mirror {mirror!r}: not the URL of a server or of a folder on it",
            hint="like https://mirror.example.org/debian",
        )
    scheme, _, rest = url.partition("://")
    path = rest[len(urlsplit(url).netloc) :] if scheme else rest
    return f"{mirror.rstrip('/')}{path}"


def _folder(url: str) -> Path:
    return cache() / hashlib.sha256(url.encode()).hexdigest()[:16]


def _name(url: str, checksum: Checksum) -> str:
    """Return the name of an image in the cache; its suffix says the format."""
    last = urlsplit(url).path.rpartition("/")[2]
    return f"{checksum.digest[:16]}-{last[-180:]}"


def _fetched(
    url: str,
    folder: Path,
    wanted: Checksum,
    signature: str,
    progress: Progress,
    mirror: str | None,
) -> PulledImage:
    """Fetch an image into its folder, and remove everything else there."""
    part, target = folder / f"{wanted.digest[:16]}.part", folder / _name(url, wanted)
    at = mirrored(url, mirror)
    resumed = part.exists()
    _keep(folder, part, folder / f"{part.name}.mark", folder / _RECORD, *_recorded(url))
    downloads.resume(at, part, progress)
    digests = _digests(part, wanted, progress)
    if digests[wanted.algorithm] != wanted.digest and resumed:
        part.unlink()  # what came earlier may be of another file
        downloads.resume(at, part, progress)
        digests = _digests(part, wanted, progress)
    found = digests[wanted.algorithm]
    if found != wanted.digest:
        part.unlink()
        raise InvalidRequest(
            f"{at}: {wanted.algorithm} is {found}, not {wanted.digest} as published",
            hint="try again later: a publisher replaces image and checksums one after the other",
        )
    size = part.stat().st_size
    part.rename(target)
    image = PulledImage(
        url=url,
        path=target,
        size=size,
        checksum=wanted,
        sha256=digests["sha256"],
        signature=signature,
    )
    record = {
        "url": url,
        **attrs.asdict(wanted),
        "sha256": image.sha256,
        "size": size,
        "signature": signature,
    }
    with replacing(folder / _RECORD, 0o644, lasting=False) as stream:
        stream.write(json.dumps(record).encode())
    _keep(folder, target, folder / _RECORD)
    return image


def _recorded(url: str) -> tuple[Path, ...]:
    """Return the file of the image that was pulled before, which stays until there is a new one."""
    there = find(ImageSource(url=url))
    return () if there is None else (there.path,)


def _keep(folder: Path, *files: Path) -> None:
    """Remove all other files: drafts of killed pulls, and images that were replaced."""
    for file in folder.iterdir():
        if file not in files:
            file.unlink()


def _digests(path: Path, wanted: Checksum, progress: Progress) -> Mapping[str, str]:
    """Return a file's digests: as published, and SHA-256."""
    digests = {name: hashlib.new(name) for name in {"sha256", wanted.algorithm}}
    total, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
            done += len(block)
            progress(done, total)
    return {name: digest.hexdigest() for name, digest in digests.items()}
