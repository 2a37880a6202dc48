"""Values as JSON: the same at the other end, and no answer of a host is believed unchecked."""

import json

import pytest
from hypothesis import given

from tests.core import test_wire as values
from vmcloner_core.errors import BackendError, NotFound, PartialFailure
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Answered, Asked, Found
from vmcloner_core.plan import CloneResult, Plan, RunResult
from vmcloner_core.survey import Survey, Unseen


def again(value):
    return wire.load(wire.dump(value), type(value), whose="a test")


@given(values.plans | values.creates | values.targets | values.specs | values.progress)
def test_a_value_is_the_same(value):
    assert again(value) == value


@given(values.some_errors())
def test_an_error_is_the_same(error):
    found = again(Answered(error=error)).error
    assert (type(found), found.exit_code) == (type(error), error.exit_code)
    if isinstance(error, PartialFailure):
        assert len(found.failures) == len(error.failures)


@given(values.plans, values.some_errors())
def test_a_result_is_the_same(plan, error):
    result = RunResult(plan=plan, results=(CloneResult(name="web-1", error=error),), seconds=1.5)
    assert again(result).plan == plan
    assert type(again(result).results[0].error) is type(error)


def test_a_survey_is_the_same():
    unseen = Unseen(host="h", kind="storage", name="files", error=NotFound("gone", hint="look"))
    found = again(Found(survey=Survey(foreign_names=frozenset({"a"}), unseen=(unseen,)), clones=1))
    assert found.survey.foreign_names == {"a"}
    assert str(found.survey.unseen[0]) == str(unseen)


@pytest.mark.parametrize(
    "answer",
    [
        "", "{", "[]", "null", "3", '{"error": {"kind": "SystemExit", "message": "x"}}',
        '{"error": {"kind": "NotFound"}}', '{"error": {"kind": "NotFound", "message": 3}}',
        '{"value": 1e999}', "[" * 100_000, '{"error": "text"}',
    ],
)  # fmt: skip
def test_a_wrong_answer_is_one_clear_error(answer):
    with pytest.raises(BackendError, match="host 'h1'"):
        plan(answer)


def plan(answer):
    return wire.load(wire.load(answer, Answered, whose="host 'h1'").value, Plan, whose="host 'h1'")


def test_a_plan_with_hostile_names_is_refused():
    labels = {"fleet": "../../etc", "index": 1, "template": "t", "run": "r", "owner": "o",
              "created": "c", "storage": "s", "hypervisor": "h"}  # fmt: skip
    wrong = {"action": "create", "run": "r", "host": "h", "order": [],
            "clones": [{"labels": labels, "steps": []}]}  # fmt: skip
    with pytest.raises(BackendError):
        wire.load(json.dumps(wrong), Plan, whose="host 'h1'")


def test_what_a_host_says_is_shown_without_control_characters():
    text = json.dumps({"error": {"kind": "NotFound", "message": "a\x1b[2Jb", "hint": "\x07"}})
    error = wire.load(text, Answered, whose="a test").error
    assert str(error) == r"a\x1b[2Jb (\x07)"


def test_an_answer_has_a_limit(monkeypatch):
    monkeypatch.setattr(wire, "MAX_MESSAGE", 10)
    with pytest.raises(BackendError, match="more than 10 bytes"):
        wire.load('"' + "x" * 20 + '"', str, whose="host 'h1'")


def test_what_is_too_large_is_said_on_both_sides(hosts, monkeypatch):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    monkeypatch.setattr(wire, "MAX_MESSAGE", 1000)
    (unseen, *_) = hosts.controller().survey().unseen
    assert "the answer to survey is larger than 1000 bytes" in str(unseen)
    monkeypatch.setattr(wire, "MAX_MESSAGE", 100)
    with pytest.raises(BackendError, match="hello asks more than 100 bytes"):
        hosts.controller()._links.one("h1", "hello", Asked(name="x" * 100), dict)
