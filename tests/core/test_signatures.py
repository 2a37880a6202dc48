"""Signatures of publishers' files of checksums: checked by gpgv with keys that gpg makes here."""

import hashlib
import json
import shutil
import subprocess

import attrs
import pytest

from tests.conftest import TEMPLATE
from tests.publisher import publishing
from vmcloner_core import pulling, signatures
from vmcloner_core.process import LocalRunner

IMAGE, SUMS, SIGNATURE = "/latest/disk.raw", "/latest/SHA256SUMS", "/latest/SHA256SUMS.gpg"
BODY = b"an image".ljust(1024**2, b"\0")


@attrs.frozen
class Signer:
    """A key that signs."""

    home: str
    user: str

    def gpg(self, *words, stdin=b""):
        argv = ["gpg", "--homedir", self.home, "--batch", "--quiet", "--passphrase", "", *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def signers(tmp_path_factory):
    """Two keys: a publisher's and a stranger's."""
    made = []
    for user in ("Publisher <images@example.org>", "Stranger <mallory@example.org>"):
        home = tmp_path_factory.mktemp("gpg")
        home.chmod(0o700)
        signer = Signer(str(home), user)
        signer.gpg("--quick-gen-key", user, "ed25519", "sign", "0")
        made.append(signer)
    yield made
    for signer in made:
        subprocess.run(["gpgconf", "--homedir", signer.home, "--kill", "gpg-agent"], check=False)


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    folder = tmp_path / "publisher"
    folder.mkdir()
    with publishing(folder) as publisher:
        monkeypatch.setenv("SSL_CERT_FILE", str(publisher.ca))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        publisher.files[IMAGE] = BODY
        publisher.files[SUMS] = f"{hashlib.sha256(BODY).hexdigest()}  disk.raw\n".encode()
        yield publisher


@pytest.fixture
def web(lab, publisher, signers, run):
    """Return a function that writes the template ``web`` with these keys, and pulls its image."""
    for name, armor in (("key.gpg", ()), ("key.asc", ("--armor",))):
        place = lab.folder / "templates" / name
        place.write_bytes(signers[0].gpg(*armor, "--export"))

    def pull(*more):
        lines = [f'url = "{publisher.url}{IMAGE}"', f'checksums = "{publisher.url}{SUMS}"', *more]
        lab.template("web", TEMPLATE.replace('path = "image.raw"', "\n".join(lines)))
        return run("template", "pull", "web", "-f", "json")

    return pull


def detached(publisher):
    return f'signature = "{publisher.url}{SIGNATURE}"'


@pytest.mark.parametrize("keyring", ["key.gpg", "key.asc"])
@pytest.mark.parametrize("armor", [(), ("--armor",)])
def test_a_good_signature_in_a_file_of_its_own(web, publisher, signers, keyring, armor):
    publisher.files[SIGNATURE] = signers[0].gpg(*armor, "-b", stdin=publisher.files[SUMS])
    code, out, err = web(detached(publisher), f'keyring = "{keyring}"')
    assert code == 0, err
    said = "vmcloner: web: signature of its checksum: good, by Publisher <images@example.org> ("
    assert said in err
    assert json.loads(out)["changed"] is True


def test_a_good_signature_in_the_file(web, publisher, signers):
    publisher.files[SUMS] = signers[0].gpg("--clearsign", stdin=publisher.files[SUMS])
    code, _, err = web('keyring = "key.gpg"')
    assert code == 0
    assert "good, by Publisher" in err


def other(publisher):
    return publisher.files[SUMS].replace(b"disk.raw", b"disk.img ")


@pytest.mark.parametrize(
    ("signed", "message"),
    [
        (lambda s, p: s[0].gpg("-b", stdin=other(p)), "its signature is not of this content"),
        (lambda s, p: s[1].gpg("-b", stdin=p.files[SUMS]), "which is not in "),
        (lambda _s, _p: b"no signature", "it has no signature that can be read"),
        (lambda _s, _p: b"", "it has no signature that can be read"),
        (lambda _s, _p: bytes(64 * 1024 + 1), "larger than 64 KiB"),
        (lambda _s, _p: None, "404"),
    ],
)
def test_a_bad_signature_refuses(web, publisher, signers, signed, message):
    publisher.files[SIGNATURE] = signed(signers, publisher)
    code, _, err = web(detached(publisher), 'keyring = "key.gpg"')
    assert code in (3, 9), err
    assert message in err
    assert len(err.splitlines()) == 1
    assert IMAGE not in [path for _, path, _ in publisher.asked]


def test_a_bad_signature_in_the_file_refuses(web, publisher, signers):
    good = signers[0].gpg("--clearsign", stdin=publisher.files[SUMS])
    for number, bad in enumerate((
        good.replace(b"disk.raw", b"disk.img"),
        signers[1].gpg("--clearsign", stdin=publisher.files[SUMS]),
        publisher.files[SUMS],  # the signature was taken away
        good[: good.index(b"-----BEGIN PGP SIGNATURE")],
    )):  # fmt: skip
        publisher.files[SUMS] = bad
        code, _, err = web('keyring = "key.gpg"')
        assert code == 3, (number, err)


def test_lines_before_the_signed_part_are_not_believed(web, publisher, signers):
    forged = f"{hashlib.sha256(b'x').hexdigest()}  disk.raw\n".encode()
    publisher.files[SUMS] = forged + signers[0].gpg("--clearsign", stdin=publisher.files[SUMS])
    assert web('keyring = "key.gpg"')[0] == 0


@pytest.mark.parametrize("keyring", [None, "gone.gpg"])
def test_a_missing_key_is_said_in_one_line(web, publisher, signers, keyring):
    publisher.files[SIGNATURE] = signers[1].gpg("-b", stdin=publisher.files[SUMS])
    lines = [f'keyring = "{keyring}"'] if keyring else []
    code, _, err = web(detached(publisher), *lines)
    assert code == 0
    (line,) = [line for line in err.splitlines() if "not checked" in line]
    assert (keyring or "names no keyring") in line


def test_a_missing_tool_is_said_in_one_line(web, publisher, signers, monkeypatch):
    publisher.files[SUMS] = signers[0].gpg("--clearsign", stdin=publisher.files[SUMS])
    monkeypatch.setattr(LocalRunner, "which", lambda _self, _program: None)
    code, _, err = web('keyring = "key.gpg"')
    assert code == 0
    (line,) = [line for line in err.splitlines() if "not checked" in line]
    assert "gpgv is not installed (apt-get install gpgv)" in line


def test_no_signature_is_no_news(web):
    code, _, err = web()
    assert code == 0
    assert "signature" not in err


def test_create_says_it_too(web, run, publisher, signers):
    publisher.files[SUMS] = signers[0].gpg("--clearsign", stdin=publisher.files[SUMS])
    web('keyring = "key.gpg"')
    shutil.rmtree(pulling.cache())
    code, _, err = run("create", "x", "-t", "web", "--pull")
    assert code == 0
    assert "good, by Publisher" in err


def test_a_damaged_keyring(web, publisher, signers, lab):
    publisher.files[SIGNATURE] = signers[0].gpg("-b", stdin=publisher.files[SUMS])
    begin = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"
    for text in (begin, f"{begin}mDM\n-----END PGP PUBLIC KEY BLOCK-----\n", "nothing"):
        (lab.folder / "templates" / "bad.asc").write_text(text)
        code, _, err = web(detached(publisher), 'keyring = "bad.asc"')
        assert code == 3, err


def test_two_armored_keys_in_one_file(signers, tmp_path):
    both = b"".join(signer.gpg("--armor", "--export") for signer in signers)
    (tmp_path / "both.asc").write_bytes(both)
    for signer in signers:
        signature = signer.gpg("-b", stdin=b"text")
        verdict = signatures.check(LocalRunner(), "x", b"text", signature, tmp_path / "both.asc")
        assert verdict.good.startswith(signer.user)


def test_a_revoked_key_refuses(web, publisher, signers, lab, tmp_path):
    publisher.files[SIGNATURE] = signers[1].gpg("-b", stdin=publisher.files[SUMS])
    home = tmp_path / "revoked"
    shutil.copytree(signers[1].home, home, ignore=shutil.ignore_patterns("S.*"))
    home.chmod(0o700)
    copy = Signer(str(home), "")
    (cert,) = home.glob("openpgp-revocs.d/*.rev")
    text = cert.read_text().replace(":-----BEGIN", "-----BEGIN")
    copy.gpg("--import", stdin=text.encode())
    (lab.folder / "templates" / "revoked.gpg").write_bytes(copy.gpg("--export"))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    code, _, err = web(detached(publisher), 'keyring = "revoked.gpg"')
    assert code == 3
    assert "was revoked" in err
