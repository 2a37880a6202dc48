"""What a host may send by mitogen, without a host."""

import pytest

mitogen = pytest.importorskip("mitogen.core")
carrier = pytest.importorskip("vmcloner_mitogen.carrier")


@pytest.mark.parametrize("octets", [b"", b"garbage", b"\x80", b".", b"I1\n.", b"(I1\n"])
def test_what_is_no_text_is_one_clear_error(octets):
    message = mitogen.Message(data=octets, enc=mitogen.Message.ENC_PKL)
    with pytest.raises(carrier.Unreachable, match="sent what can't be read"):
        carrier._said("h1", message)


def test_a_host_can_not_write_into_our_log():
    """mitogen's handle for it takes any logger's name and any level."""
    made = carrier.MitogenCarrier()
    try:
        assert mitogen.FORWARD_LOG not in made._started()._handle_map
    finally:
        made.close()
