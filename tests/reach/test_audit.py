"""What answers prove, and what hostile ones don't."""

import subprocess

import pytest

from vmcloner_core import audit
from vmcloner_core.errors import HostCommandError, PartialFailure, WrongState
from vmcloner_core.remote import Answer

KEYS = ("hostname", "machine_id", "host_key", "mac", "address", "client_id", "generation_id",
        "random_seed")  # fmt: skip


def answer(number, name=None, **facts):
    values = {key: [f"{key}-{number}"] for key in KEYS} | {"end": ["end"]} | facts
    lines = [f"vmcloner-fact {key} {value}" for key, found in values.items() for value in found]
    return Answer(
        name=name or f"web-{number}", code=0, stdout="\n".join(["motd", *lines, ""]).encode()
    )


def verdict(report, fact):
    return next(verdict for verdict in report.verdicts if verdict.fact == fact)


def test_different_machines():
    report = audit.judge([answer(n) for n in range(1, 21)])
    report.check()
    assert all(v.ok for v in report.verdicts)
    assert (verdict(report, "machine_id").read, verdict(report, "machine_id").distinct) == (20, 20)
    assert verdict(report, "uuid").read == 0


@pytest.mark.parametrize("fact", KEYS)
def test_two_that_share_one(fact):
    answers = [answer(n) for n in range(1, 5)]
    answers[2] = answer(3, **{fact: [f"{fact}-3-own", f"{fact}-1"]})
    report = audit.judge(answers)
    assert verdict(report, fact).shared == ((f"{fact}-1", ("web-1", "web-3")),)
    with pytest.raises(PartialFailure, match="2 of 4") as caught:
        report.check()
    assert caught.value.exit_code == 10
    assert {name for name, _ in caught.value.failures} == {"web-1", "web-3"}
    assert f"web-[1,3] have one {fact}: {fact}-1" in str(caught.value.failures[0][1])


@pytest.mark.parametrize("fact", ["hostname", "machine_id", "host_key", "mac", "address"])
def test_what_is_not_there_is_no_proof(fact):
    report = audit.judge([answer(1), answer(2, **{fact: []})])
    assert verdict(report, fact).missing == ("web-2",)
    with pytest.raises(PartialFailure, match="1 of 2"):
        report.check()


def test_not_everybody_has_a_client_id():
    audit.judge([answer(1), answer(2, client_id=[], generation_id=[], random_seed=[])]).check()


def test_who_did_not_answer_is_not_proven():
    answers = [
        answer(1),
        Answer(name="web-2", error=HostCommandError("web-2: ssh: no route")),
        Answer(name="web-3", code=127, stdout=b"", stderr=b"no shell\n"),
        answer(4, end=[]),
    ]
    report = audit.judge(answers)
    assert list(report.unread) == ["web-2", "web-3", "web-4"]
    assert "no shell" in str(report.unread["web-3"])
    assert isinstance(report.unread["web-4"], WrongState)
    with pytest.raises(PartialFailure, match="3 of 4"):
        report.check()


def test_hostile_answers_are_bounded():
    lines = b"".join(b"vmcloner-fact mac %d\n" % n for n in range(100_000))
    long = b"vmcloner-fact hostname " + b"a" * 1_000_000 + b"\n"
    odd = b"vmcloner-fact address \x1b[31m\xff\nvmcloner-fact hostname\nvmcloner-fact Q 1\n"
    report = audit.judge(
        [Answer(name="web-1", code=0, stdout=lines + long + odd + b"vmcloner-fact end end\n")]
    )
    assert verdict(report, "mac").distinct == audit.MAX_VALUES
    assert verdict(report, "address").missing == ("web-1",)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_runs_in_a_shell(shell):
    done = subprocess.run([shell, "-c", audit.SCRIPT], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    facts = audit.facts_of(Answer(name="x", code=0, stdout=done.stdout))
    assert len(facts["hostname"]) == 1
