"""``vmcloner pool``: what people see of pools."""

import json


def test_a_pool_by_hand(run, lab):
    code, _, err = run("pool", "list")
    assert (code, "vmcloner pool fill" in err) == (0, True)
    code, out, err = run("pool", "fill", "box", "-t", "t1", "-n", "2", "-f", "json")
    assert code == 0
    assert [row["state"] for row in json.loads(out)] == ["ready", "ready"]
    assert "pool box: 2 ready" in err
    lab.engine.acquire("box", who="me")
    rows = json.loads(run("pool", "list", "box", "-f", "json")[1])
    assert sorted(row["who"] or "" for row in rows) == ["", "me"]
    assert {row["left"] is None for row in rows} == {True, False}
    code, out, err = run("pool", "fill", "box", "-n", "3", "--reset", "never")
    assert (code, "2 ready, 1 taken" in err) == (0, True)
    assert lab.engine.pool("box").template == "t1"
    code, _, err = run("pool", "empty", "box")
    assert (code, "pool box: 1 taken" in err) == (0, True)
    code, _, err = run("pool", "empty", "box", "--force")
    assert (code, "pool box: empty" in err) == (0, True)


def test_what_is_wrong_with_a_pool_is_one_line(run):
    for words, wanted in (
        (("list", "none"), 4),
        (("empty", "none"), 4),
        (("fill", "none"), 4),
        (("fill", "web-1", "-t", "t1"), 3),
        (("fill", "box", "-t", "t1", "-n", "0"), 3),
        (("fill", "box", "-t", "missing"), 4),
        (("fill", "box", "-t", "t1", "--reset", "perhaps"), 2),
        (("fill",), 2),
    ):
        code, out, err = run("pool", *words)
        assert (code, out) == (wanted, ""), err
        assert len(err.splitlines()) == 1, err
