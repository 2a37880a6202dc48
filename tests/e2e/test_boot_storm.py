"""Starts are admitted one after another, on a real hypervisor."""

import json

import pytest

pytestmark = pytest.mark.libvirt


@pytest.mark.timeout(400)
def test_the_next_boots_when_the_one_before_is_ready(site):
    fleet = site.fleet("storm")
    words = ("-t", "tiny", "-n", "3", "--boot-jobs", "1", "--timeout", "120", "--wait")
    try:
        before = set((site.folder / "state" / "runs").glob("*.jsonl"))
        site.run("create", fleet, *words, timeout=380)
        (log,) = set((site.folder / "state" / "runs").glob("*.jsonl")) - before
        events = [json.loads(line) for line in log.read_text().splitlines()]
        steps = [
            (event["clone"], event["step"], event["status"])
            for event in events
            if event["event"] == "step"
        ]
        booting, most = set(), 0
        for clone, step, status in steps:
            if (step, status) == ("start", "started"):
                booting.add(clone)
                most = max(most, len(booting))
            elif step == "wait" and status != "started":
                booting.discard(clone)
        assert most == 1
        assert booting == set()
    finally:
        site.run("delete", fleet, "--yes", "--missing-ok")
