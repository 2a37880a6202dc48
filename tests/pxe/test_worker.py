"""What the privileged half believes of the half that may have been taken over."""

import contextlib
import io

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
