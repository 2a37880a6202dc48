"""Check the OpenPGP signatures of publishers' files of checksums, by gpgv.

A signature is in the file (a cleartext signature) or in a file of its own. The keys that may sign
are in a file that the template names: a keyring, or keys in ASCII armor. See gpgv(1) and "Format of
the --status-fd output" in GnuPG's DETAILS.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path

import attrs

from vmcloner_core.errors import HostCommandError, InvalidRequest, shown
from vmcloner_core.process import CommandRunner
from vmcloner_core.trusted_files import read_file

MAX_SIGNATURE = 64 * 1024
"""Bytes of a signature in a file of its own."""
TOOL = "gpgv"
_CLEARTEXT = re.compile(rb"^-----BEGIN PGP SIGNED MESSAGE-----\s*$", re.MULTILINE)
_ARMORED = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*?\n(?:[^\n]*: [^\n]*\n)*\s*?\n"
    rb"([A-Za-z0-9+/=\s]+?)(?:\n=[A-Za-z0-9+/]{4})?\s*-----END PGP PUBLIC KEY BLOCK-----"
)
_REFUSED = {
    "BADSIG": "is not of this content",
    "EXPSIG": "has expired",
    "EXPKEYSIG": "is by a key that has expired",
    "REVKEYSIG": "is by a key that was revoked",
}


@attrs.frozen
class Verdict:
    """What was found about a signature.

    :param content: what is signed, or all of it if nothing was checked.
    :param good: who signed it, empty if that was not checked. :param skipped: why it was not;
        empty if it was checked, or if there is no signature.
    """

    content: bytes
    good: str = ""
    skipped: str = ""

    def __str__(self) -> str:
        if self.good:
            return f"good, by {self.good}"
        return f"not checked: {self.skipped}" if self.skipped else ""


def is_cleartext(content: bytes) -> bool:
    """Tell whether a file has its signature in it."""
    return _CLEARTEXT.search(content) is not None


def lacking(runner: CommandRunner, keyring: Path | None) -> str:
    """Return what is missing to check a signature, with the way out; empty if nothing is."""
    if keyring is None:
        return "the template names no keyring (keyring in [image])"
    if not keyring.exists():
        return f"the keyring {keyring} is not there (install it, or name another)"
    if runner.which(TOOL) is None:
        return f"{TOOL} is not installed (apt-get install {TOOL})"
    return ""


def check(
    runner: CommandRunner, what: str, content: bytes, signature: bytes | None, keyring: Path
) -> Verdict:
    """Check a file's signature by the keys in a keyring.

    :param what: the file's URL. :param signature: None if it is in the content.
    :raises InvalidRequest: it isn't a good signature by one of these keys.
    :raises HostCommandError: gpgv can't be run.
    """
    with tempfile.TemporaryDirectory(prefix="vmcloner-") as work:
        folder = Path(work)
        keys, signed, out = folder / "keys.gpg", folder / "signed", folder / "content"
        keys.write_bytes(_binary(keyring))
        signed.write_bytes(content if signature is None else signature)
        argv = [TOOL, "--homedir", work, "--keyring", str(keys), "--status-fd", "2"]
        if signature is None:
            argv += ["--output", str(out), str(signed)]
        else:
            data = folder / "data"
            data.write_bytes(content)
            argv += [str(signed), str(data)]
        signer = _signer(runner, argv, what, keyring)
        return Verdict(out.read_bytes() if signature is None else content, good=signer)


def _signer(runner: CommandRunner, argv: list[str], what: str, keyring: Path) -> str:
    """Run gpgv; returns who signed.

    :raises InvalidRequest, HostCommandError: see :func:`check`.
    """
    failed: HostCommandError | None = None
    try:
        text = runner.run(argv, timeout=60).stderr.decode(errors="replace")
    except HostCommandError as error:
        text, failed = error.output, error
    lines = [line[9:].split(" ") for line in text.splitlines() if line.startswith("[GNUPG:] ")]
    said = {words[0]: words[1:] for words in lines}
    for keyword, reason in _REFUSED.items():
        if keyword in said:
            raise InvalidRequest(f"{what}: its signature {reason}", hint=_HINT) from failed
    if failed is None and "VALIDSIG" in said and "GOODSIG" in said:
        return shown(f"{' '.join(said['GOODSIG'][1:])} ({said['VALIDSIG'][0]})", 200)
    if "NO_PUBKEY" in said or "ERRSIG" in said:
        key = (said.get("NO_PUBKEY") or said["ERRSIG"])[0]
        raise InvalidRequest(
            f"{what}: signed by key {shown(key, 40)}, which is not in {keyring}",
            hint="the publisher may have a new key: see keyring in [image]",
        ) from failed
    if failed is not None and not lines:
        raise failed
    raise InvalidRequest(f"{what}: it has no signature that can be read", hint=_HINT) from failed


_HINT = "don't use this image: its publisher's server, or the way to it, gave something else"


def _binary(keyring: Path) -> bytes:
    """Return a keyring as gpgv reads it: without ASCII armor.

    :raises InvalidRequest: it can't be read, or its armor is damaged.
    """
    content = read_file(keyring, trusted=True)
    if b"-----BEGIN PGP PUBLIC KEY BLOCK-----" not in content:
        return content
    try:
        blocks = [base64.b64decode(b"".join(b.split()), validate=True)
                  for b in _ARMORED.findall(content)]  # fmt: skip
    except binascii.Error as error:
        raise InvalidRequest(f"keyring {keyring}: damaged: {error}") from error
    if not blocks:
        raise InvalidRequest(f"keyring {keyring}: damaged: no whole block of keys")
    return b"".join(blocks)
