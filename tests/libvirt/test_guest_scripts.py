"""Scripts that guest agents run: what is asked of them, and what is taken of their answers."""

import base64
import json

import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_core import cancelling  # noqa: E402
from vmcloner_core.errors import NotFound, WrongState  # noqa: E402
from vmcloner_libvirt import guest_scripts  # noqa: E402


class Guest:
    """A domain whose agent gives these answers, one after the other: texts, or libvirt's errors."""

    def __init__(self, *answers, active=True):
        self.answers, self.asked, self.active = list(answers), [], active

    def name(self):
        return "web-1"

    def isActive(self):  # noqa: N802 - libvirt's
        return self.active

    def qemuAgentCommand(self, domain, question, timeout, flags):  # noqa: N802
        assert (domain, flags) == (self, 0)
        assert 0 < timeout <= 60
        self.asked.append(json.loads(question))
        answer = self.answers.pop(0)
        if isinstance(answer, str) and answer.startswith("VIR_ERR"):
            error = libvirt.libvirtError("no")
            error.err = (getattr(libvirt, answer), 0, "no", 2, "", "", "", 0, 0)
            raise error
        return answer if isinstance(answer, str) else json.dumps({"return": answer})


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(guest_scripts, "POLL", 0.0)

    def call(guest, timeout=60.0, ask=lambda operation: operation(None)):
        monkeypatch.setattr(guest_scripts, "libvirt_qemu", lambda: guest)
        monkeypatch.setattr(guest_scripts.operations, "find", lambda _c, _name: guest)
        guest_scripts.run(ask, name="web-1", script=b"secret", timeout=timeout)

    return call


def ended(code=0, **said):
    return {"exited": True, "exitcode": code} | {
        key.replace("_", "-"): base64.b64encode(text).decode() for key, text in said.items()
    }


def test_a_script_goes_through_a_pipe_and_is_waited_for(run):
    guest = Guest({"pid": 7}, {"exited": False}, ended())
    run(guest)
    first, *looks = guest.asked
    assert first["execute"] == "guest-exec"
    assert first["arguments"]["path"] == "/bin/sh"
    assert first["arguments"]["arg"] == ["-s"]
    assert base64.b64decode(first["arguments"]["input-data"]) == b"secret"
    assert looks == [{"execute": "guest-exec-status", "arguments": {"pid": 7}}] * 2


def test_a_script_that_runs_holds_no_connection(run, monkeypatch):
    """Or the scripts of twenty guests would keep all connections from everything else."""
    held, seen = [], []
    monkeypatch.setattr(cancelling, "pause", lambda _seconds: seen.append(list(held)))

    def ask(operation):
        held.append(1)
        try:
            return operation(None)
        finally:
            held.pop()

    run(Guest("VIR_ERR_AGENT_UNRESPONSIVE", {"pid": 7}, {"exited": False}, ended()), ask=ask)
    assert seen == [[], []]


def test_a_silent_agent_is_asked_again(run):
    guest = Guest("VIR_ERR_AGENT_UNRESPONSIVE", {"pid": 7}, "VIR_ERR_AGENT_UNSYNCED", ended())
    run(guest)
    assert guest.answers == []


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (["VIR_ERR_INTERNAL_ERROR"], "no agent in the guest runs scripts"),
        ([{"pid": 7}, ended(3)], "failed: exit code 3"),
        ([{"pid": 7}, ended(1, err_data=b"a\nno disk\x1b\n")], r"failed: no disk\?"),
        ([{"pid": 7}, ended(1, out_data=b"said\n")], "failed: said"),
        ([{"pid": 7}, {"exited": True, "signal": 9}], "failed: signal 9"),
        ([{"pid": 7}, ended(1) | {"err-data": "%"}], "failed"),
        ([{"pid": 7}, ended(1) | {"err-data": 7}], "failed: exit code 1"),
        ([{"pid": "7"}], "makes no sense"),
        ([[]], "makes no sense"),
        (["[" * 100_000], "makes no sense"),
        (["7"], "makes no sense"),
        (["{}"], "makes no sense"),
        ([" " * guest_scripts.MAX_ANSWER + '{"return": {"pid": 7}}'], "makes no sense"),
    ],
)
def test_what_is_no_success_is_refused_by_name(run, answers, reason):
    with pytest.raises(WrongState, match=f"web-1: .*{reason}"):
        run(Guest(*answers))


def test_time_is_bounded(run):
    with pytest.raises(WrongState, match="didn't end within 0 s"):
        run(Guest({"pid": 7}, {"exited": False}), timeout=0.0)
    with pytest.raises(WrongState, match="no agent in the guest runs scripts"):
        run(Guest("VIR_ERR_AGENT_UNRESPONSIVE"), timeout=0.0)


def test_a_domain_that_is_gone_or_off_is_not_asked(run, monkeypatch):
    with pytest.raises(WrongState, match="web-1: not running"):
        run(Guest(active=False))
    with pytest.raises(NotFound, match="web-1"):
        run(None)
