"""Images are pulled from their publishers by name, checked, resumed, and kept for all pools."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import TEMPLATE
from tests.publisher import publishing
from vmcloner_core import catalog, downloads, pulling
from vmcloner_core.catalog import Catalog
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotFound, NotPulled
from vmcloner_core.model import ImageSource

IMAGE, SUMS = "/cloud/latest/disk.raw", "/cloud/latest/SHA512SUMS"


def sums(body, name="disk.raw"):
    return f"{hashlib.sha512(body).hexdigest()}  {name}\n"


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    folder = tmp_path / "publisher"
    folder.mkdir()
    with publishing(folder) as publisher:
        monkeypatch.setenv("SSL_CERT_FILE", str(publisher.ca))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield publisher


@pytest.fixture
def body():
    return os.urandom(4096) * 512


@pytest.fixture
def web(lab, publisher, body):
    """The template ``web``, whose image is at the publisher's."""
    publisher.add(IMAGE, body, SUMS, sums(body))
    text = f'url = "{publisher.url}{IMAGE}"\nchecksums = "{publisher.url}{SUMS}"\n'
    lab.template("web", TEMPLATE.replace('path = "image.raw"\n', text))
    return lab.engine


def files():
    return sorted(path.name for path in pulling.cache().rglob("*") if path.is_file())


def asked(publisher, path=IMAGE):
    return [ranges for method, asked, ranges in publisher.asked if (method, asked) == ("GET", path)]


def test_a_pull(web, publisher, body):
    outcome = web.pull_template("web")
    image = outcome.unwrap()
    assert outcome.changed
    assert image.path.read_bytes() == body
    assert (image.size, image.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert str(image.checksum) == f"sha512:{hashlib.sha512(body).hexdigest()}"
    again = web.pull_template("web")
    assert (again.changed, again.unwrap()) == (False, image)
    assert asked(publisher) == [None]


@pytest.mark.parametrize("at", [1, 1024**2, 2 * 1024**2 - 1])
def test_a_pull_that_was_cut_off_goes_on(web, publisher, body, at):
    publisher.cuts[IMAGE] = at
    with pytest.raises(HostCommandError):
        web.pull_template("web")
    assert web.pull_template("web").unwrap().path.read_bytes() == body
    assert asked(publisher) == [None, f"bytes={at}-"]
    assert len(files()) == 3  # the image, what it is, and the lock


def test_a_pull_that_was_killed_after_its_last_byte(web, publisher, body):
    publisher.cuts[IMAGE] = 10
    with pytest.raises(HostCommandError):
        web.pull_template("web")
    (part,) = pulling.cache().rglob("*.part")
    part.write_bytes(body)
    assert web.pull_template("web").unwrap().path.read_bytes() == body


def test_a_part_of_another_file_is_fetched_anew(web, publisher, body):
    publisher.cuts[IMAGE] = 1000
    with pytest.raises(HostCommandError):
        web.pull_template("web")
    (part,) = pulling.cache().rglob("*.part")
    part.write_bytes(bytes(1000))  # the server's mark is the same
    assert web.pull_template("web").unwrap().path.read_bytes() == body
    assert asked(publisher) == [None, "bytes=1000-", None]


def test_without_a_mark_it_begins_again(web, publisher, body):
    publisher.tags, publisher.cuts[IMAGE] = False, 1000
    with pytest.raises(HostCommandError):
        web.pull_template("web")
    assert web.pull_template("web").unwrap().path.read_bytes() == body
    assert asked(publisher) == [None, None]


def test_an_image_that_was_replaced_is_pulled_again(web, publisher, body):
    first = web.pull_template("web").unwrap()
    newer = body[::-1]
    publisher.files[IMAGE] = newer
    assert not web.pull_template("web").changed  # its publisher's list says nothing of it yet
    publisher.files[SUMS] = sums(newer).encode()
    publisher.cuts[IMAGE] = 10
    with pytest.raises(HostCommandError):
        web.pull_template("web")
    assert first.path.read_bytes() == body  # as long as there is no newer one
    assert web.pull_template("web").unwrap().path.read_bytes() == newer
    assert not first.path.exists()


def test_a_file_that_changed_in_the_cache(web, publisher, body):
    image = web.pull_template("web").unwrap()
    image.path.write_bytes(bytes(len(body)))
    with pytest.raises(InvalidRequest, match="sha256 is"):
        web.import_template("web")
    assert web.pull_template("web").changed
    assert image.path.read_bytes() == body
    (image.path.parent / "pulled.json").write_text('{"algorithm": "sha512", "digest": "../../x"}')
    assert web.pull_template("web").changed


def test_a_wrong_checksum(web, publisher, body):
    publisher.files[IMAGE] = b"x" + body[1:]
    with pytest.raises(InvalidRequest, match=r"sha512 is .*, not .* as published"):
        web.pull_template("web")
    assert [name for name in files() if "disk.raw" in name or name.endswith(".part")] == []
    with pytest.raises(NotPulled):
        web.import_template("web")


def test_a_list_without_the_image(web, publisher, body):
    publisher.files[SUMS] = sums(body, "other.raw").encode()
    with pytest.raises(NotFound, match=r"has no checksum of disk\.raw"):
        web.pull_template("web")
    assert asked(publisher) == []


def test_a_list_that_is_too_large(web, publisher, body):
    publisher.files[SUMS] = sums(body).encode() + b"#" * pulling.MAX_CHECKSUMS
    with pytest.raises(HostCommandError, match=r"larger than 1 MiB"):
        web.pull_template("web")


def test_an_image_beyond_the_room(web, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=downloads.RESERVE + 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(Exception, match="more than the"):
        web.pull_template("web")


@pytest.mark.parametrize("path", [IMAGE, SUMS])
def test_a_redirect_to_http_is_refused(web, publisher, path):
    publisher.redirects[path] = f"http://127.0.0.1:1{path}"
    with pytest.raises(HostCommandError, match="redirects to 'http://"):
        web.pull_template("web")


def test_a_redirect_to_another_folder_is_followed(web, publisher, body):
    publisher.add("/mirror/disk.raw", body)
    publisher.redirects[IMAGE] = "/mirror/disk.raw"
    assert web.pull_template("web").unwrap().path.read_bytes() == body


def test_a_server_that_nobody_vouches_for(web, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with pytest.raises(HostCommandError, match=r"(?i)certificate"):
        web.pull_template("web")


def test_a_mirror(lab, publisher, body):
    """It has the publisher's folders below one of its own; what was pulled is the publisher's."""
    publisher.add(f"/pub{IMAGE}", body, f"/pub{SUMS}", sums(body))
    gone = "https://gone.example"
    text = f'url = "{gone}{IMAGE}"\nchecksums = "{gone}:443{SUMS}"\n'
    lab.template("web", TEMPLATE.replace('path = "image.raw"\n', text))
    image = lab.engine.pull_template("web", mirror=f"{publisher.url}/pub/").unwrap()
    assert image.path.read_bytes() == body
    assert image.url == f"https://gone.example{IMAGE}"
    lab.engine.import_template("web")
    for mirror, said in (
        ("http://127.0.0.1:1", "only over https"),
        ("ftp://x", "not the URL of a server"),
        ("mirror.example", "not the URL of a server"),
        ("https://x/?y", "not the URL of a server"),
        ("https://[x", "not the URL of a server"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            lab.engine.pull_template("web", mirror=mirror)


def test_templates_with_nothing_to_pull(lab):
    lab.template("t1")
    with pytest.raises(InvalidRequest, match="no url to pull it from"):
        lab.engine.pull_template("t1")


def test_a_pinned_image_is_pulled_too(lab, publisher, body):
    publisher.add(IMAGE, body)
    digest = hashlib.sha256(body).hexdigest()
    text = f'url = "{publisher.url}{IMAGE}"\nsha256 = "{digest.upper()}"\n'
    lab.template("web", TEMPLATE.replace('path = "image.raw"\n', text))
    assert lab.engine.pull_template("web").changed
    lab.engine.import_template("web")
    assert asked(publisher) == [None]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_create_says_what_to_do(run, web, lab):
    code, _, err = run("create", "x", "-t", "web")
    assert code == 4
    url = lab.engine.template("web").image.url
    assert f"the image of template web is not here: {url} (vmcloner template pull web" in err
    assert len(err.splitlines()) == 1
    code, _, err = run("create", "x", "-t", "web", "--pull", "--dry-run")
    assert code == 4


def test_create_pulls_when_told_to(run, web, publisher):
    code, _, err = run("create", "x", "-t", "web", "--pull", "-n", "2")
    assert code == 0, err
    assert asked(publisher) == [None]
    code, _, _ = run("create", "x", "-t", "web", "--pull", "-n", "3")
    assert code == 0
    assert len(publisher.asked) == 2  # no question about what is in the pool


@pytest.mark.parametrize(("answer", "expected"), [("y", 0), ("", 130), ("n", 130)])
def test_create_asks_on_a_terminal(run, web, monkeypatch, answer, expected):
    questions = []
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    code, _, err = run("create", "x", "-t", "web", stdin=Terminal())
    assert code == expected, err
    assert questions == ["Download it (2 MiB)? [y/N] "]
    assert len(web.list()) == (1 if expected == 0 else 0)


def test_clones_keep_their_image(run, web, publisher, body):
    """Pulling a newer one changes no pool; importing it does, once no clone is linked."""
    assert run("create", "x", "-t", "web", "--pull")[0] == 0
    (before,) = web.origins("web")
    publisher.files[IMAGE] = body[::-1]
    publisher.files[SUMS] = sums(body[::-1]).encode()
    code, out, err = run("template", "pull", "web", "-f", "json")
    assert code == 0
    row = json.loads(out)
    assert set(row) == {"template", "url", "file", "size", "checksum", "sha256", "changed"}
    assert row["changed"] is True
    assert f"pool {before.pool} has another image of it" in err
    assert web.origins("web") == (before,)
    assert run("template", "import", "web")[0] == 6
    assert run("delete", "x", "--yes")[0] == 0
    assert run("template", "import", "web")[0] == 0
    assert web.origins("web")[0].digest == f"sha256:{row['sha256']}"
    assert "another image" not in run("template", "pull", "web")[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "https://x/y", "checksums": "http://x/SUMS"}, "not https"),
        ({"url": "https://x/y", "checksums": "https:///SUMS"}, "not https"),
        ({"path": "x", "checksums": "https://x/SUMS"}, "only allowed with a url"),
        ({"url": "https://x/y", "checksums": "https://x/S", "sha256": "0" * 64}, "not both"),
        ({"url": "https://x/y", "signature": "https://x/S"}, "only allowed with checksums"),
        ({"path": "x", "keyring": Path("k")}, "only allowed with checksums"),
        (
            {"url": "https://x/y", "checksums": "https://x/S", "signature": "http://x/S"},
            "not https",
        ),
    ],
)
def test_keys_that_do_not_fit(given, said):
    with pytest.raises(InvalidRequest, match=said):
        ImageSource(**given)


def test_a_template_that_extends_one_with_checksums(lab, tmp_path):
    base = TEMPLATE.replace('path = "image.raw"', 'url = "https://x/a"\nchecksums = "https://x/S"')
    lab.template("base", base)
    for own, left in (
        ('format = "raw"', ("https://x/a", None, "https://x/S")),
        (f'sha256 = "{"0" * 64}"', ("https://x/a", "0" * 64, None)),
        ('url = "https://x/b"', ("https://x/b", None, None)),
        ('path = "image.raw"', (None, None, None)),
    ):
        lab.template("own", f'extends = "base"\n[image]\n{own}\n')
        image = lab.engine.template("own").image
        assert (image.url, image.sha256, image.checksums) == left


def test_signature_and_keys_are_of_one_list(lab):
    signed = 'checksums = "https://x/S"\nsignature = "https://x/S.asc"\nkeyring = "k.asc"'
    lab.template("base", TEMPLATE.replace('path = "image.raw"', f'url = "https://x/a"\n{signed}'))
    keyring = lab.folder / "templates" / "k.asc"
    other = lab.folder / "templates" / "other.asc"
    for own, left in (
        ('format = "raw"', ("https://x/S.asc", keyring)),
        ('keyring = "other.asc"', ("https://x/S.asc", other)),
        ('checksums = "https://x/T"', (None, None)),
        ('url = "https://x/b"\nchecksums = "https://x/T"\nkeyring = "other.asc"', (None, other)),
    ):
        lab.template("own", f'extends = "base"\n[image]\n{own}\n')
        image = lab.engine.template("own").image
        assert (image.signature, image.keyring) == left


PUBLISHED = ("almalinux", "alpine", "arch", "centos", "debian", "fedora", "freebsd", "opensuse",
             "rocky", "ubuntu")  # fmt: skip


def test_the_shipped_templates(tmp_path):
    infos = {i.name: i for i in Catalog(tmp_path, (catalog.shipped(),)).infos()}
    assert [info.error for info in infos.values() if info.error] == []
    published = {n: i.template for n, i in infos.items() if i.template.image.checksums is not None}
    assert {name.split("-")[0] for name in published} == set(PUBLISHED)
    assert {"debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04"} <= published.keys()
    for name, template in published.items():
        assert 'extends = "cloud-image"' in template.origin_file.read_text(), name
        assert template.image.url.startswith("https://"), name
        assert template.identity.provider == "cloud-init"
        assert [(nic.kind, nic.source) for nic in template.nics] == [("network", "vmcloner")]
        assert template.ready == "ssh"
        assert template.ssh.user == {"centos": "cloud-user"}.get(
            name.split("-")[0], name.split("-")[0]
        )
