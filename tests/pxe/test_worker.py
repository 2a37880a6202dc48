"""What the privileged half believes of the half that may have been taken over."""

import contextlib
import io
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_pxe import worker
from vmcloner_pxe.errors import NetbootError

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5),
    st.lists(st.text(max_size=3) | st.integers(), max_size=3),
)  # fmt: skip
NAMES = st.sampled_from(["index", "error", "kernel", "initrds", "arguments", "files", "local", "x"])


def test_a_message_becomes_an_answer():
    message = {"index": 3, "kernel": "tftp://h/k", "initrds": ["tftp://h/i"], "arguments": "a"}
    answer = worker._answer(message, (io.BytesIO(), io.BytesIO()))
    assert (answer.index, answer.initrds, answer.local) == (3, ("tftp://h/i",), False)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_message_is_an_answer_of_the_right_types_or_refused(message):
    with contextlib.suppress(ValueError, TypeError, KeyError):
        answer = worker._answer(dict(message), ())
        assert isinstance(answer.index, int)
        assert answer.error is None or isinstance(answer.error, str)
        assert all(isinstance(name, str) for name in answer.initrds)
        assert answer.files == ()


@pytest.mark.parametrize("files", [1, 3])
def test_files_must_be_as_many_as_are_named(files):
    message = {"index": 0, "kernel": "k", "initrds": ["i"]}
    with pytest.raises(ValueError, match="files"):
        worker._answer(message, tuple(io.BytesIO() for _ in range(files)))


@pytest.mark.parametrize("user", ["root", "0", "no-such-user", "99999999999999999999", "-1"])
def test_nobody_reads_as_root_or_as_a_user_there_is_not(user):
    with pytest.raises(NetbootError, match="user"):
        worker.uid_of(user)


def test_numbers_without_a_name_are_users_too():
    assert worker.uid_of("123456") == (123456, 123456)


@pytest.fixture
def channel():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def received(channel, fds, message=b'{"index": 0, "kernel": "k"}', max_size=1000):
    """What the privileged half makes of a message that comes with descriptors."""
    ours, theirs = channel
    socket.send_fds(theirs, [message], fds)
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        return worker._receive(ours, None, worker.Order(), max_size, time.monotonic() + 10)
    except NetbootError:
        assert len(list(Path("/proc/self/fd").iterdir())) == before  # none is kept
        raise


@pytest.mark.parametrize("kind", ["fifo", "folder", "zero", "socket", "large"])
def test_what_is_no_file_of_that_size_is_refused_unread(channel, tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "fifo":
            os.mkfifo(tmp_path / "f")
            fd = os.open(tmp_path / "f", os.O_RDWR)  # a reader of it would wait for ever
        elif kind == "socket":
            fd = os.dup(channel[1].fileno())
        elif kind == "large":
            (tmp_path / "l").write_bytes(bytes(1001))
            fd = os.open(tmp_path / "l", os.O_RDONLY)
        else:
            fd = os.open({"folder": "/", "zero": "/dev/zero"}[kind], os.O_RDONLY)
        stack.callback(os.close, fd)
        with pytest.raises(NetbootError, match="broke its protocol"):
            received(channel, [fd])


def test_a_file_of_that_size_is_taken(channel, tmp_path):
    (tmp_path / "f").write_bytes(b"k" * 1000)
    with (tmp_path / "f").open("rb") as file:
        answer = received(channel, [file.fileno()])
    assert answer.files[0].read() == b"k" * 1000
    answer.close()


def test_what_is_longer_than_a_message_is_an_error_of_that_guest_alone(channel):
    ours, theirs = channel
    channel = worker._Channel(theirs)
    names = [f"http://x/{number}{'é' * 2000}" for number in range(16)]
    with Path("/dev/null").open("rb") as file:
        channel.send({"index": 4, "kernel": "http://x/k", "initrds": names}, [file] * 17)
    channel.send({"index": 5, "kernel": "http://x/k"})
    receive = lambda: worker._receive(ours, None, worker.Order(), 1000, time.monotonic() + 10)  # noqa: E731
    first, second = receive(), receive()
    assert (first.index, first.files) == (4, ())
    assert "says too much: " in first.error
    assert (second.index, second.error) == (5, None)


@pytest.mark.parametrize(("size", "files"), [(worker.MAX_MESSAGE + 1, 0), (2, 18)])
def test_a_message_that_was_cut_is_refused(channel, size, files):
    with Path("/dev/null").open("rb") as file, pytest.raises(NetbootError, match="its protocol"):
        received(channel, [file.fileno()] * files, b"{}".ljust(size))


@pytest.mark.parametrize("message", [b"[" * 60_000, b'{"index":' * 6_000, b"\xff", b"1", b"{}}"])
def test_a_message_that_is_none_is_refused(channel, message):
    with pytest.raises(NetbootError, match="its protocol"):
        received(channel, [], message)


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_whose_parent_was_killed_at_once_ends_too(killed):
    """The kernel tells the worker only of a death that comes after it asked to be told."""
    ours, theirs = os.pipe()
    between = os.fork()
    if between == 0:
        parent = os.getpid()
        if os.fork() == 0:
            try:
                while killed and os.getppid() == parent:
                    time.sleep(0.01)
                worker.give_up_privileges((65534, 65534), 10**6, parent)
                os.write(theirs, b"alive")
            finally:
                os._exit(0)
        if not killed:
            os.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(theirs)
    with open(ours, "rb") as stream:  # noqa: PTH123 - a descriptor
        assert stream.read() == (b"" if killed else b"alive")
    os.waitpid(between, 0)
