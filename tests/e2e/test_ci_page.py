"""The jobs that docs/ci.md shows: their YAML is read, and what they say is run."""

import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.e2e.conftest import VMCLONER
from vmcloner_core import names

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text()
TESTER = """#!/bin/sh -e
test "$(vmcloner list "$1" --state running -f value -c name | wc -l)" = 2
vmcloner lease show "$1" -f value -c left | grep -vq None
"""


def jobs(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def gitlab(number: int) -> dict[str, dict]:
    documents = [yaml.safe_load(text) for text in jobs("yaml") if ".gitlab-ci.yml" in text]
    return documents[number]


def lines(job: dict) -> list[str]:
    return [*job["script"], *job["after_script"]]


def bash(site, line: str, **variables: str) -> int:
    """Run a line as a runner does, with two machines; its output is shown if the test fails."""
    line = line.replace(" -n 4 ", " -n 2 ")
    environment = {
        **os.environ,
        "PATH": f"{VMCLONER.parent}:{os.environ['PATH']}",
        "VMCLONER_CONFIG": str(site.folder / "vmcloner.toml"),
        **variables,
    }
    print("$", line, flush=True)
    done = subprocess.run(
        ["bash", "-e", "-c", line], env=environment, cwd=site.folder, timeout=300, check=False
    )
    return done.returncode


def test_all_servers_have_the_same_commands():
    (github,) = (yaml.safe_load(text) for text in jobs("yaml") if ".github" in text)
    (jenkins,) = jobs("groovy")
    steps = github["jobs"]["machines"]["steps"]
    of_github = [step["run"] for step in steps if "run" in step]
    of_jenkins = [line.strip() for line in re.findall(r"sh '''(.*?)'''", jenkins)]
    assert of_github == of_jenkins == lines(gitlab(0)["machines"])
    always = [step["run"] for step in steps if "run" in step and step.get("if") == "always()"]
    assert always == gitlab(0)["machines"]["after_script"]


def test_the_fleets_have_names_that_fleets_may_have():
    texts = [text for language in ("yaml", "groovy") for text in jobs(language)]
    shown = re.findall(r"^ +FLEET(?:: | = \")(.*?)\"?$", "\n".join(texts), re.MULTILINE)
    shown += re.findall(r"\"((?:old|new)-\S+)\"", "\n".join(texts))
    assert len(shown) == 3 + 7
    for name in shown:
        names.check_fleet(re.sub(r"\$\{\{.*?\}\}|\$\{.*?\}|\$\w+", "17", name))


def test_what_stands_for_the_command_in_a_container_is_there_for_programs_too(tmp_path):
    """For ./test-machines, and for lines that a server runs in a shell of their own."""
    (stand_in,) = jobs("sh")
    programs = {"vmcloner": stand_in, "podman": '#!/bin/sh\nprintf "%s\\n" "$@"\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", "vmcloner list 'a b'"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-3:] == ["vmcloner", "list", "a b"]
    assert f"{tmp_path}:{tmp_path}" in done.stdout


@pytest.mark.libvirt
@pytest.mark.timeout(600)
def test_the_job(site):
    (site.folder / "test-machines").write_text(TESTER)
    (site.folder / "test-machines").chmod(0o755)
    job = gitlab(0)["machines"]
    fleet = site.fleet(job["variables"]["FLEET"].replace("$CI_JOB_ID", "17"))
    for line in lines(job):
        assert bash(site, line, FLEET=fleet, TEMPLATE="tiny") == 0, line
    cases = ElementTree.parse(site.folder / job["artifacts"]["reports"]["junit"]).iter("testcase")
    assert [case.get("name") for case in cases] == [f"{fleet}-{n}" for n in (1, 2)]
    (consoles,) = job["artifacts"]["paths"]
    said = (site.folder / consoles).read_text().splitlines()
    assert {line.partition(":")[0] for line in said} == {f"{fleet}-{n}" for n in (1, 2)}
    assert site.rows() == []


@pytest.mark.libvirt
@pytest.mark.timeout(600)
def test_a_job_that_fails_at_once_leaves_a_report(site):
    """Its last lines are run then, too; what isn't there is no error."""
    job = gitlab(0)["machines"]
    fleet = site.fleet("shop-j18")
    first, *_ = job["script"]
    assert bash(site, first, FLEET=fleet, TEMPLATE="tyni") == 4
    for line in job["after_script"]:
        assert bash(site, line, FLEET=fleet, TEMPLATE="tyni") == 0, line


@pytest.mark.libvirt
@pytest.mark.timeout(600)
def test_the_gate(site):
    job = gitlab(1)["speed"]
    number = site.fleet("17")
    try:
        for line in lines(job):
            code = bash(site, line, CI_JOB_ID=number, OLD="tiny", NEW="tiny")
            assert code in ((0, 12) if "--compare" in line else (0,)), line
    finally:
        site.run("delete", f"old-j{number}", f"new-j{number}", "--yes", "--missing-ok")
    cases = ElementTree.parse(site.folder / job["artifacts"]["reports"]["junit"]).iter("testcase")
    assert len(list(cases)) == 2
