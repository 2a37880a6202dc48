"""The plugin in a user's project: which machines tests get, and what is left of them."""

import signal
import subprocess
import time

import pytest

POOL = "vmcloner_pool = {template = 't1', size = 2, reset = '%s'}"
USES = """
import pytest

def test_one(clone):
    assert clone.name == "{name}"
    assert "ready name=" in clone.console()

def test_two(clones):
    assert [c.name for c in clones]
"""


def test_machines_come_from_the_pool_and_nothing_is_left(project):
    project.settings("vmcloner_pool = {template = 't1', size = 1, name = 'box'}")
    project.tests(USES.replace("{name}", "box-1"))
    project.run().assert_outcomes(passed=2)
    assert project.names() == []
    assert project.engine.pools() == ()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pytest.ini", "[pytest]\nvmcloner_pool = {template = 't1', name = 'box', size = 1}\n"),
        ("tox.ini", "[pytest]\nvmcloner_pool =\n  {template = 't1', name = 'box',\n  size = 1}\n"),
        ("pyproject.toml", "[tool.pytest]\nvmcloner_pool = {template='t1', name='box', size=1}\n"),
    ],
)
def test_where_the_pool_is_described(project, file, text):
    (project.folder / file).write_text(text)
    project.tests(USES.replace("{name}", "box-1"))
    project.run().assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "text",
    ["{size = 2}", "{template = 't1', sise = 2}", "3", "{", "{template = 't1', reset = 'x'}"],
)
def test_a_wrong_description_is_refused(project, text):
    (project.folder / "pytest.ini").write_text(f"[pytest]\nvmcloner_pool = {text}\n")
    project.tests("def test_it(clone): pass")
    result = project.run()
    assert "vmcloner_pool" in result.stdout.str() + result.stderr.str()
    assert result.parseoutcomes().get("passed") is None


def test_the_pool_is_kept_on_request(project):
    project.settings(POOL % "on-failure")
    project.tests("def test_it(clone): pass")
    project.run("--vmcloner-keep-pool").assert_outcomes(passed=1)
    assert project.names() == ["t1-pool-1", "t1-pool-2"]
    before = project.engine.show("t1-pool-1").labels
    project.run("--vmcloner-keep-pool").assert_outcomes(passed=1)
    assert project.engine.show("t1-pool-1").labels == before
    project.run().assert_outcomes(passed=1)
    assert project.names() == []


def test_the_machines_of_a_failed_test_are_kept_on_request(project):
    project.settings(POOL % "always")
    project.tests(
        """
        import pytest
        def test_fails(clone):
            assert not clone.name
        def test_passes(clone): pass
        def test_own(fleet):
            fleet("t1", count=2)
            assert 0
        """
    )
    result = project.run("--vmcloner-keep-on-failure")
    result.assert_outcomes(failed=2, passed=1)
    kept = project.names()
    assert len(kept) == 3
    for name in kept:
        result.stdout.fnmatch_lines([f"vmcloner ssh {name}*"])
    project.engine.gc(expired=True)
    assert project.names() == kept


def test_consoles_are_in_the_report_of_a_failed_test(project):
    project.tests("def test_it(fleet):\n    fleet('t1')\n    assert 0\n")
    result = project.run("--vmcloner-console")
    result.stdout.fnmatch_lines(["*console of *", "ready name=*", "*journal of *", "not known: *"])
    assert "console of" not in project.run().stdout.str()


def test_fleets_last_as_long_as_they_are_asked_for(project):
    project.tests(
        """
        import pytest
        names = []
        @pytest.mark.parametrize("n", [1, 2])
        def test_it(fleet, vmcloner, n):
            one, two = fleet("t1", count=2, scope="module")
            (own,) = fleet("t1")
            names.append((one.name, own.name))
            assert len(vmcloner.list()) == 3
            assert fleet("t1", count=2, scope="module") == (one, two)
        def test_after(vmcloner):
            (first, own), (second, other) = names
            assert first == second
            assert own != other
            assert len(vmcloner.list()) == 2
        """
    )
    project.run().assert_outcomes(passed=3)
    assert project.names() == []


def test_a_marker_asks_for_machines(project):
    project.settings(POOL % "never")
    project.tests(
        """
        import pytest
        @pytest.mark.vmcloner(count=2)
        def test_pool(clones):
            assert [c.pool for c in clones] == ["t1-pool"] * 2
        @pytest.mark.vmcloner(template="t1", count=3)
        def test_more_than_the_pool(clones):
            assert [c.pool for c in clones] == [None] * 3
        @pytest.mark.vmcloner(count=3)
        def test_too_many(clones): pass
        @pytest.mark.vmcloner("t1")
        def test_wrong(clones): pass
        """
    )
    result = project.run()
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*3 machines of a pool of 2*", "*the marker is vmcloner(*"])


def test_without_a_pool_a_template_must_be_named(project):
    project.tests("def test_it(clone): pass")
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no template: set vmcloner_pool*"])


def test_what_a_host_cannot_do_is_skipped_or_fails(project):
    (project.folder / "vmcloner.toml").write_text(
        "[hosts.local.hypervisor.kvm]\nuri = 'qemu+unix:///system?socket=/nowhere'\n"
    )
    project.pytester.makeconftest("")
    project.settings(POOL % "never")
    project.tests("def test_it(clone): pass\ndef test_other(): pass\n")
    result = project.run("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["*this host can't: *"])
    project.run("--vmcloner-require").assert_outcomes(errors=1, passed=1)


@pytest.mark.parametrize(
    ("pool", "marker", "asked"),
    [
        ("", "", "fleet('t1', count=2)"),
        ("", "@pytest.mark.vmcloner(template='t1', count=2)", "get('clones')"),
        (POOL % "always", "", "get('clone')"),
    ],
)
def test_machines_that_cannot_be_removed_are_an_error_that_names_them(project, pool, marker, asked):
    project.settings(pool)
    project.tests(
        f"""
        import pytest
        from vmcloner_core.errors import BackendError

        def gone():
            raise BackendError("the hypervisor is gone")

        {marker}
        def test_it(request, vmcloner, fleet):
            get = request.getfixturevalue
            {asked}
            vmcloner._host.drivers.hypervisor("reference").inspect = gone
        """
    )
    result = project.run("-rs")
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    stay = project.names()
    assert len(stay) == 2
    result.stdout.fnmatch_lines(
        ["*the hypervisor is gone*", f"*may stay until their leases end: {' '.join(stay)}"]
    )


def test_machines_that_are_lost_once_they_are_made_are_a_failure(project):
    project.tests(
        """
        from vmcloner_core.errors import BackendError

        def gone(*_names, ttl):
            raise BackendError("the hypervisor is gone")

        def test_it(vmcloner, fleet):
            vmcloner.extend_lease = gone
            fleet("t1")
        """
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*machines were made, but lost*", "*-1: the hypervisor is gone*"])
    assert project.names() == []


def test_machines_that_fail_to_be_removed_are_the_ones_named(project):
    project.tests(
        """
        from vmcloner_core.errors import HostCommandError
        def test_it(vmcloner, fleet):
            one, two = fleet("t1", count=2)
            failing = vmcloner._host.drivers.hypervisor("reference").fail
            failing["undefine", two.name] = HostCommandError("it is busy")
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    (left,) = project.names()
    result.stdout.fnmatch_lines([f"{left}: *it is busy*", f"*until their leases end: {left}"])


def test_a_boot_longer_than_a_lease_ends_no_lease(project, monkeypatch):
    monkeypatch.setenv("SHARED_BOOT", "4")
    project.settings("vmcloner_ttl = '3s'")
    project.tests(
        """
        def left(vmcloner):
            return [lease.left for lease in vmcloner.leases(vmcloner.list())]

        def test_it(fleet, vmcloner):
            for count in (1, 2):
                fleet("t1")
                assert len(left(vmcloner)) == count
                assert min(left(vmcloner)) > 0, left(vmcloner)
        """
    )
    project.run().assert_outcomes(passed=1)
    assert project.names() == []


def test_what_is_wrong_is_told_in_lines_not_tracebacks(project):
    project.tests("def test_it(fleet): fleet('missing')")
    result = project.run()
    result.assert_outcomes(failed=1)
    assert "unknown template" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_four_workers_share_a_pool_and_leave_nothing(project):
    project.settings("vmcloner_pool = {template = 't1', size = 4, reset = 'on-failure'}")
    project.tests(
        """
        import os, pathlib, time
        import pytest
        @pytest.mark.parametrize("n", range(24))
        def test_it(clone, n):
            mine = pathlib.Path("using", clone.name)
            mine.parent.mkdir(exist_ok=True)
            mine.touch(exist_ok=False)
            time.sleep(0.05)
            mine.unlink()
            pathlib.Path("seen-" + os.environ["PYTEST_XDIST_WORKER"]).touch()
        """
    )
    project.run("-n", "4").assert_outcomes(passed=24)
    assert len(list(project.folder.glob("seen-*"))) == 4
    assert project.names() == []


def test_several_pytests_share_a_pool(project):
    project.settings("vmcloner_pool = {template = 't1', size = 2, reset = 'always'}")
    project.tests(
        """
        import pytest
        @pytest.mark.parametrize("n", range(6))
        def test_it(clone, vmcloner, n):
            assert clone.pool == "t1-pool"
            assert len(vmcloner.list()) <= 2
        """
    )
    runs = [
        subprocess.Popen(project.argv(), cwd=project.folder, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for run in runs:
        out, _ = run.communicate(timeout=200)
        assert (run.returncode, "6 passed" in out) == (0, True), out
    assert project.names() == []


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_killed_pytest_leaves_nothing_once_its_leases_have_run_out(project, workers):
    project.settings("vmcloner_pool = {template = 't1', size = 3}\nvmcloner_ttl = '2s'")
    project.tests(
        """
        import pathlib, time
        def test_it(clone, fleet):
            fleet("t1", count=2)
            pathlib.Path("reached").touch()
            time.sleep(1000)
        """
    )
    with subprocess.Popen(
        project.argv(*workers),
        cwd=project.folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as run:
        try:
            end = time.monotonic() + 100
            while not (project.folder / "reached").exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            time.sleep(3)  # the leases were extended meanwhile
            project.engine.gc(expired=True)
            assert len(project.names()) == 5
        finally:
            subprocess.run(["kill", "-KILL", "--", f"-{run.pid}"], check=True)
    assert run.returncode == -signal.SIGKILL
    time.sleep(2.1)
    project.engine.gc(expired=True)
    assert project.names() == []
