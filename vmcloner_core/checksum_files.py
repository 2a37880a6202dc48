"""Read the files in which publishers list the checksums of their images.

The formats are those of ``sha256sum`` (Debian, Ubuntu, AlmaLinux, openSUSE, Arch), of BSD's tools
(Fedora, CentOS, Rocky, FreeBSD), and a digest alone (Alpine); a file may be wrapped in an OpenPGP
cleartext signature (Fedora). Signatures are checked elsewhere (:mod:`vmcloner_core.signatures`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound, shown

Algorithm = Literal["sha256", "sha512"]
_LENGTHS: dict[int, str] = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384",
                            128: "sha512"}  # fmt: skip
_STRONG = ("sha512", "sha256")
"""What is good enough, the best first."""
_GNU = re.compile(r"([0-9a-fA-F]{32,128})(?:[ \t]+\*?(\S.*))?")
_BSD = re.compile(r"([A-Za-z0-9-]{3,12}) \((.+)\) = ([0-9a-fA-F]{32,128})")
_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"


@attrs.frozen
class Checksum:
    """A digest of a file, in lower-case hexadecimal digits."""

    algorithm: Algorithm
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def last_part(url: str) -> str:
    """Return the file name at the end of a URL's path."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def find(content: bytes, url: str, image: str) -> Checksum:
    """Return an image's checksum from the file that lists it, the strongest if there are several.

    The line is found by the image's name. A file that is called like the image, with a further
    suffix, is about that image alone: its one line may name what the image's name stands for.

    :param url: of the file, for messages and its name. :param image: the image's file name.
    :raises InvalidRequest: it isn't such a file, or contradicts itself.
    :raises NotFound: it has no usable checksum of the image.
    """
    lines = list(_lines(content, url))
    named = [line for line in lines if line[1] == image]
    if not named and last_part(url).startswith(f"{image}."):
        named = lines
        if len({name for _, name, _ in named}) > 1:
            raise InvalidRequest(f"{url}: is about several files, none of them {shown(image, 120)}")
    found: dict[str, str] = {}
    for algorithm, _, digest in named:
        if found.setdefault(algorithm, digest) != digest:
            raise InvalidRequest(f"{url}: has two {algorithm} checksums of {shown(image, 120)}")
    for algorithm in _STRONG:
        if algorithm in found:
            return Checksum(cast(Algorithm, algorithm), found[algorithm])
    if found:
        raise NotFound(f"{url}: has only a {', '.join(found)} checksum of {shown(image, 120)}")
    raise NotFound(
        f"{url}: has no checksum of {shown(image, 120)}",
        hint="the publisher may have renamed the image: see url and checksums in [image]",
    )


def _lines(content: bytes, url: str) -> Iterator[tuple[str, str, str]]:
    """Yield algorithm, file name (may be empty) and digest of each line.

    :raises InvalidRequest: a line is nothing that such a file has.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{url}: not a file of checksums: {error.reason}") from error
    for number, line in _signed_part(text.splitlines(), url):
        if not line.strip() or line.startswith("#"):
            continue
        bare = line.strip()
        if bsd := _BSD.fullmatch(bare):
            algorithm, name, digest = bsd[1].lower().replace("-", ""), bsd[2], bsd[3]
        elif gnu := _GNU.fullmatch(bare):
            digest, name = gnu[1], gnu[2] or ""
            algorithm = _LENGTHS.get(len(digest), "")
        else:
            raise InvalidRequest(
                f"{url}: not a file of checksums: line {number} is {shown(bare, 80)!r}"
            )
        if _LENGTHS.get(len(digest)) != algorithm and (not bsd or algorithm in _STRONG):
            raise InvalidRequest(
                f"{url}: line {number}: a digest of {len(digest)} digits is no "
                f"{shown(algorithm, 12) or 'known checksum'}"
            )
        yield algorithm, name.removeprefix("./"), digest.lower()


def _signed_part(lines: list[str], url: str) -> Iterator[tuple[int, str]]:
    """Yield a file's lines with their numbers; of a signed one only what is signed."""
    numbered = list(enumerate(lines, 1))
    starts = [number for number, line in numbered if line.rstrip() == _SIGNED]
    if not starts:
        yield from numbered
        return
    ends = [number for number, line in numbered if line.rstrip() == _SIGNATURE]
    if len(starts) != 1 or len(ends) != 1 or ends[0] < starts[0]:
        raise InvalidRequest(f"{url}: its OpenPGP signature is incomplete")
    inside = numbered[starts[0] : ends[0] - 1]
    blank = next((i for i, (_, line) in enumerate(inside) if not line.strip()), len(inside))
    for number, line in inside[blank:]:
        yield number, line.removeprefix("- ")
