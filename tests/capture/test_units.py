"""What templates may say about captures, and what the guest that seals may answer."""

from types import SimpleNamespace

import pytest

from vmcloner_core import sealing
from vmcloner_core.errors import HostCommandError, InvalidRequest, WrongState
from vmcloner_core.model import CapturedImage, ImageSource, SealSpec
from vmcloner_tiny.sealer import Sealer

CAPTURED = CapturedImage(
    template="t", pool="files", clone="web-1", run="r", created="c", at="a", sealed=True
)


@pytest.mark.parametrize("pattern", ["etc/x", "/", "", "/a/../b", "/a\nremove /b", "~/x", "/a\x00"])
@pytest.mark.parametrize("key", ["remove", "empty", "keep"])
def test_patterns_that_are_refused(key, pattern):
    with pytest.raises(InvalidRequest, match=f"seal {key}"):
        SealSpec(**{key: (pattern,)})


def test_a_captured_image_has_no_other_source():
    assert ImageSource(captured=CAPTURED).captured is CAPTURED
    for more in ({"url": "https://x/y"}, {"sha256": "0" * 64}, {"format": "raw"}):
        with pytest.raises(InvalidRequest):
            ImageSource(captured=CAPTURED, **more)


def test_only_the_token_seals():
    sealing._judge("web-1", "token", "noise\r\ntoken sealed 1\r\n")
    for said in ("", "sealed 1\n", "other sealed 1\n", "x token sealed 1\n", "tokensealed 1"):
        with pytest.raises(HostCommandError, match="without a result"):
            sealing._judge("web-1", "token", said)
    with pytest.raises(WrongState, match="disk can't be sealed: /x: \\?\\[31m") as caught:
        sealing._judge("web-1", "token", "token error /x: \x1b[31m\ntoken sealed 1\n")
    assert "--no-seal" in (caught.value.hint or "")


def test_rules_are_whole_sectors_and_in_order():
    text = sealing._rules(SealSpec(remove=("/srv/*",), keep=("/var/log/x",)))
    assert len(text) % 512 == 0
    lines = text.rstrip(b"\0").decode().splitlines()
    assert lines[-2:] == ["remove /srv/*", "keep /var/log/x"]
    assert {line.split(" ")[0] for line in lines} == {"remove", "file", "empty", "name", "keep"}


def test_a_guest_that_was_built_needs_no_apt():
    offline = SimpleNamespace(runner=None)
    assert Sealer(offline).fingerprint() == Sealer(offline).fingerprint() != ""


@pytest.mark.parametrize("emulated", [True, False])
def test_kvm_is_tried_only_where_guests_run_on_it(tmp_path, monkeypatch, emulated):
    """It may open and hardly run: then a guest that would boot in seconds takes minutes."""
    monkeypatch.setattr(sealing, "KVM", tmp_path)  # there, and open to this user
    asked = []

    def run(argv, **_options):
        asked.append(argv[argv.index("-accel") + 1])
        raise HostCommandError("qemu-system-x86_64: no")

    runner = SimpleNamespace(which=lambda name: name, run=run)
    work, disk = tmp_path / "work", tmp_path / "disk"
    work.mkdir()
    disk.touch()
    with pytest.raises(HostCommandError):
        sealing.seal(
            runner, tmp_path, disk, work, "web-1", SealSpec(),
            compact=False, emulated=emulated,
        )  # fmt: skip
    assert asked == [*([] if emulated else ["kvm"]), sealing.EMULATED]
