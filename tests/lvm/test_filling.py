"""Images are written into volumes as they are."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import AS_IT_COMES, Copying
from vmcloner_core.testing.storage import StorageConformance
from vmcloner_lvm.filling import fill

pieces = st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(pieces)
def test_what_is_written_is_the_image(tmp_path, pieces):
    content = b"".join((b"\xa5" if data else b"\0") * length for data, length in pieces)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.write_bytes(bytes(len(content) + 8192))
    seen = []
    with source.open("rb") as stream:
        fill(stream.fileno(), target, len(content), AS_IT_COMES, lambda *at: seen.append(at))
    assert target.read_bytes() == content + bytes(8192)
    assert seen[-1] == (len(content), len(content))


def test_zeros_are_written_where_old_bytes_may_be(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.seek(4096)
        stream.write(b"data" * 1024)
        stream.truncate(1024**2)
    target.write_bytes(b"old!" * (256 * 1024))
    with source.open("rb") as stream:
        fill(stream.fileno(), target, 1024**2, AS_IT_COMES, lambda *_: None, blank=False)
    assert target.read_bytes() == source.read_bytes()


def test_a_verified_import_is_checked(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"data" * 4096)
    target.write_bytes(bytes(16384))
    verified = Copying(verify=True)
    with source.open("rb") as stream:
        fill(stream.fileno(), target, 16384, verified, lambda *_: None)
        with (
            StorageConformance().corrupting(),
            pytest.raises(HostCommandError, match="differ from the source"),
        ):
            fill(stream.fileno(), target, 16384, verified, lambda *_: None)


def test_a_target_that_isnt_there(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data")
    with path.open("rb") as stream, pytest.raises(HostCommandError, match="No such file"):
        fill(stream.fileno(), tmp_path / "none", 4, AS_IT_COMES, lambda *_: None)
