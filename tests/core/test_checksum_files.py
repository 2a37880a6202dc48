"""The files of checksums that publishers write, in each of their formats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.checksum_files import Checksum, find
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError

A, B = "a1" * 32, "b2" * 32
A512, B512 = "c3" * 64, "d4" * 64
FEDORA = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-AmazonEC2-44-1.7.x86_64.raw.xz: 387000000 bytes
SHA256 (Fedora-Cloud-Base-AmazonEC2-44-1.7.x86_64.raw.xz) = {B}
# disk.qcow2: 533000000 bytes
SHA256 (disk.qcow2) = {A}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEEExample+//AAAAAAAAAAAAAAAAAAAAAAAFAmnExample
=abcd
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("SHA512SUMS", f"{B512}  disk.json\n{A512}  disk.qcow2\n", f"sha512:{A512}"),  # Debian
        ("SHA256SUMS", f"{B} *other.img\n{A} *disk.qcow2\n", f"sha256:{A}"),  # Ubuntu
        ("CHECKSUM", f"{B}  other.qcow2\n{A}  disk.qcow2\n", f"sha256:{A}"),  # AlmaLinux
        ("Fedora-Cloud-44-1.7-x86_64-CHECKSUM", FEDORA, f"sha256:{A}"),
        (  # CentOS Stream: "latest" stands for a dated image
            "disk.qcow2.SHA256SUM",
            f"# disk-20260818.0.qcow2: 1 bytes\nSHA256 (disk-20260818.0.qcow2) = {A}\n",
            f"sha256:{A}",
        ),
        (  # Rocky
            "disk.qcow2.CHECKSUM",
            f"# disk.qcow2: 5 bytes\nSHA256 (disk.qcow2) = {A}\n",
            f"sha256:{A}",
        ),
        ("disk.qcow2.sha256", f"{A}  disk-16.0-Build1.2.qcow2\n", f"sha256:{A}"),  # openSUSE
        ("disk.qcow2.SHA256", f"{A}  disk.qcow2\n", f"sha256:{A}"),  # Arch
        ("disk.qcow2.sha512", A512, f"sha512:{A512}"),  # Alpine: nothing but the digest
        (  # FreeBSD
            "CHECKSUM.SHA512",
            f"SHA512 (x.xz) = {B512}\nSHA512 (disk.qcow2) = {A512}\n",
            f"sha512:{A512}",
        ),
        ("SUMS", f"{A.upper()}  ./disk.qcow2\r\n", f"sha256:{A}"),
        (
            "SUMS",
            f"MD5 (disk.qcow2) = {'1' * 32}\nSHA256 (disk.qcow2) = {A}\n"
            f"SHA512 (disk.qcow2) = {A512}\n",
            f"sha512:{A512}",
        ),
    ],
)  # fmt: skip
def test_formats(name, text, wanted):
    assert str(find(text.encode(), f"https://x/y/{name}", "disk.qcow2")) == wanted


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("SHA256SUMS", f"{B}  other.qcow2\n", NotFound, "has no checksum of disk.qcow2"),
        ("SHA256SUMS", f"{B}  x/disk.qcow2\n", NotFound, "has no checksum of disk.qcow2"),
        ("SHA256SUMS", A, NotFound, "has no checksum of disk.qcow2"),  # of which file?
        ("SHA256SUMS", "", NotFound, "has no checksum"),
        ("disk.qcow2.sha256", "", NotFound, "has no checksum"),
        ("SHA256SUMS", f"{'1' * 32}  disk.qcow2\n", NotFound, "has only a md5 checksum"),
        ("SHA256SUMS", "<html>\nMoved\n", InvalidRequest, "not a file of checksums: line 1"),
        ("SHA256SUMS", f"{A[1:]}  disk.qcow2\n", InvalidRequest, "63 digits is no known checksum"),
        ("SUMS", f"SHA512 (disk.qcow2) = {A}\n", InvalidRequest, "64 digits is no sha512"),
        ("SUMS", f"{A}  disk.qcow2\n{B}  disk.qcow2\n", InvalidRequest, "two sha256 checksums"),
        ("disk.qcow2.sha256", f"{A}  one\n{B}  two\n", InvalidRequest, "is about several files"),
        ("SUMS", FEDORA.partition("-----BEGIN PGP SIGNATURE")[0], InvalidRequest, "incomplete"),
        ("SUMS", FEDORA + FEDORA, InvalidRequest, "incomplete"),
    ],
)
def test_what_is_refused(name, text, kind, said):
    with pytest.raises(kind) as caught:
        find(text.encode(), f"https://x/{name}", "disk.qcow2")
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize("text", [f"{B}  disk.qcow2\n{FEDORA}", f"{FEDORA}{B}  disk.qcow2\n"])
def test_what_is_outside_of_a_signature_is_not_read(text):
    assert find(text.encode(), "https://x/CHECKSUM", "disk.qcow2") == Checksum("sha256", A)


def test_bytes_that_are_no_text():
    with pytest.raises(InvalidRequest, match="not a file of checksums"):
        find(b"\xff\xfe\0\0", "https://x/SUMS", "disk.qcow2")


@given(st.binary(max_size=300))
def test_any_bytes(content):
    try:
        find(content, "https://x/disk.qcow2.sha256", "disk.qcow2")
    except VmclonerError as error:
        assert error.message.isprintable()
