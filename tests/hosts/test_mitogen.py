"""What a host may send by mitogen, without a host."""

import sys

import pytest

mitogen = pytest.importorskip("mitogen.core")
carrier = pytest.importorskip("vmcloner_mitogen.carrier")


@pytest.mark.parametrize("octets", [b"", b"garbage", b"\x80", b".", b"I1\n.", b"(I1\n"])
def test_what_is_no_text_is_one_clear_error(octets):
    message = mitogen.Message(data=octets, enc=mitogen.Message.ENC_PKL)
    with pytest.raises(carrier.Unreachable, match="sent what can't be read"):
        carrier._said("h1", message)


def test_what_a_host_logs_is_a_warning_of_that_host(caplog):
    """mitogen's own handler takes any logger's name, any level, and control characters."""
    made = carrier.MitogenCarrier()
    try:
        handler = made._started()._handle_map[mitogen.FORWARD_LOG][1]
        for octets in (b"root\x0050\x00\x1b[2J", b"mitogen.core\x0050\x00internal"):
            handler(mitogen.Message(data=octets, src_id=7))
        for _ in range(2 * carrier.MAX_WARNINGS):
            handler(mitogen.Message(data=b"a\x0030\x00b", src_id=7))
    finally:
        made.close()
    first, *rest = caplog.records
    assert (first.name, first.levelname) == ("vmcloner_mitogen.carrier", "WARNING")
    assert first.getMessage().endswith(r": \x1b[2J")
    assert len(rest) == carrier.MAX_WARNINGS - 1


def test_modules_of_the_login_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = carrier.MitogenCarrier()
    try:
        context = made._started().local(python_path=carrier.python(sys.executable))
        found = context.call(eval, "'\\n'.join(__import__('sys').path)").split("\n")
    finally:
        made.close()
    assert not {"", str(tmp_path)} & set(found)


def test_a_message_may_be_as_large_as_a_value():
    """mitogen's own limit is 128 MiB, and ends the connection."""
    made = carrier.MitogenCarrier()
    try:
        context = made._started().local(python_path=carrier.python(sys.executable))
        assert context.call(len, "x" * (129 * 1024**2)) == 129 * 1024**2
        assert len(context.call(eval, "'x' * (129 * 1024**2)")) == 129 * 1024**2
    finally:
        made.close()
    assert carrier.MAX_MESSAGE > 256 * 1024**2
