"""``vmcloner snapshot`` on the reference drivers."""

import json


def rows(run, *words):
    code, out, _ = run(*words, "-f", "json")
    assert code == 0
    return json.loads(out)


def test_a_snapshots_life(lab, run):
    assert run("create", "web", "-t", "t1", "-n", "3")[0] == 0
    code, _, err = run("snapshot", "create", "web", "clean")
    assert (code, err.split(" in ")[0]) == (0, "vmcloner: 3 clones snapshotted")
    code, _, err = run("snapshot", "create", "web", "clean")
    assert (code, err.split(" in ")[0]) == (0, "vmcloner: 0 clones snapshotted, 3 unchanged")
    assert [
        (row["clone"], row["name"], row["complete"]) for row in rows(run, "snapshot", "list")
    ] == [(f"web-{n}", "clean", True) for n in (1, 2, 3)]
    assert [each["name"] for each in rows(run, "show", "web-1")["snapshots"]] == ["clean"]
    assert [row["snapshots"] for row in rows(run, "list", "--wide")] == [1, 1, 1]
    assert "snapshots" not in rows(run, "list")[0]
    assert "clean (" in run("show", "web-1")[1]
    lab.pool.contents["web-1-disk0"] = b"broken"
    assert run("snapshot", "revert", "web", "clean", "--yes")[0] == 0
    assert lab.pool.contents["web-1-disk0"] != b"broken"
    assert run("snapshot", "delete", "web-[1-2]", "web-3", "clean", "--yes")[0] == 0
    assert "there are no snapshots" in run("snapshot", "list")[2]


def test_what_destroys_asks_first(lab, run):
    run("create", "web", "-t", "t1")
    run("snapshot", "create", "web", "clean")
    lab.pool.contents["web-1-disk0"] = b"mine"
    for action in ("revert", "delete"):
        code, _, err = run("snapshot", action, "web", "clean")
        assert code == 2
        assert "--yes" in err
        assert run("snapshot", action, "web", "clean", "--dry-run")[0] == 0
    assert lab.pool.contents["web-1-disk0"] == b"mine"
    assert len(rows(run, "snapshot", "list", "web")) == 1


def test_refusals_and_their_exit_codes(lab, run):
    run("create", "web", "-t", "t1", "-n", "2", "--start")
    for words, wanted, said in (
        (("create", "web", "../x"), 3, "not a snapshot name"),
        (("revert", "web", "none", "--yes"), 4, "web-1 has no snapshot 'none'"),
        (("create", "nope", "x"), 4, "no fleet 'nope'"),
        (("create", "web"), 2, "NAME"),
    ):
        code, _, err = run("snapshot", *words)
        assert code == wanted, err
        assert said in err
    run("snapshot", "create", "web-1", "x", "--memory")
    assert run("snapshot", "create", "web-1", "x")[0] == 5
    code, _, err = run("snapshot", "revert", "web-1", "x", "--yes")
    assert code == 6
    assert "--force" in err
    assert run("snapshot", "revert", "web-1", "x", "--yes", "--force")[0] == 0
    lab.pool.snapshots = None
    code, _, err = run("snapshot", "create", "web", "y", "--memory")
    assert code == 8
    assert "has no snapshots" in err


def test_a_dry_run_shows_the_steps(lab, run):
    run("create", "web", "-t", "t1", "--start")
    [row] = rows(run, "snapshot", "create", "web", "x", "--memory", "--dry-run")
    assert row["steps"] == "check,note,save,keep,snapshot,continue,commit"
    assert rows(run, "snapshot", "list") == []
    assert lab.pool.snapshots.kept == {}
