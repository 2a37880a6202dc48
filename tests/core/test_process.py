"""The command runner: deadlines, bounded output, no shell, a minimal environment."""

import errno
import time

import pytest

from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError
from vmcloner_core.process import LocalRunner

RUNNER = LocalRunner()


def test_output_input_and_arguments_as_they_are():
    result = RUNNER.run(["cat", "-", "/dev/null"], input=b"a;b $(c)\n")
    assert result.stdout == b"a;b $(c)\n"
    assert RUNNER.run(["echo", "-n", "$HOME;`x`"]).stdout == b"$HOME;`x`"


def test_failure_has_the_last_line():
    with pytest.raises(HostCommandError, match=r"sh failed with 3: because"):
        RUNNER.run(["sh", "-c", "echo noise >&2; echo because >&2; exit 3"])


def test_missing_program():
    with pytest.raises(BackendError, match="no-such-program: not installed"):
        RUNNER.run(["no-such-program"])
    assert RUNNER.which("no-such-program") is None
    assert RUNNER.which("sh").endswith("/sh")


def test_deadline_kills_the_whole_group():
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="sh: no answer within"):
        RUNNER.run(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.3)
    assert time.monotonic() - started < 10


def test_endless_output_is_refused(monkeypatch):
    monkeypatch.setattr("vmcloner_core.process.MAX_OUTPUT", 1000)
    with pytest.raises(HostCommandError, match="more than 1000 bytes"):
        RUNNER.run(["head", "-c", "2000", "/dev/zero"])


def test_the_environment_is_minimal(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    out = RUNNER.run(["env"], env={"EXTRA": "1"}).stdout.decode()
    assert "SECRET" not in out
    assert "EXTRA=1" in out
    assert "LC_ALL=C" in out


def test_no_room_for_temporary_files_is_one_line(monkeypatch):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vmcloner_core.process.tempfile.TemporaryFile", fail)
    with pytest.raises(HostCommandError, match=r"true: can't be run: No space left") as caught:
        RUNNER.run(["true"])
    assert "TMPDIR" in caught.value.hint
