"""The tutorial, as a reader follows it: its commands are run, and its outputs compared."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import VMCLONER

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]
PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def steps(page: str) -> list[tuple[str, str]]:
    """Return the commands of a page with the outputs that it shows."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in found if part]


def matches(shown: str, printed: str) -> bool:
    """Compare outputs line by line; widths of columns, and what … stands for, don't count."""
    wanted = [" ".join(line.split()) for line in shown.splitlines()]
    pattern = "\n".join(re.escape(line).replace("…", ".*") for line in wanted)
    return (
        re.fullmatch(pattern, "\n".join(" ".join(x.split()) for x in printed.splitlines()))
        is not None
    )


def test_comparison():
    assert matches("a  … c\n", "a b   c\n")
    assert not matches("a … c\n", "a b d\n")
    assert not matches("a\n", "a\nb\n")


def test_the_tutorial(site):
    web = site.fleet("web")
    environment = {
        **os.environ,
        "PATH": f"{VMCLONER.parent}:{os.environ['PATH']}",
        "VMCLONER_CONFIG": str(site.folder / "vmcloner.toml"),
        "COLUMNS": "200",
    }
    found = steps(PAGE.read_text())
    assert len(found) > 8
    try:
        for command, shown in found:
            done = subprocess.run(
                ["bash", "-c", command.replace("web", web)],
                env=environment,
                cwd=site.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                check=False,
            )
            quiet = [x for x in done.stdout.splitlines() if not re.match(r"vmcloner: \w+ing\b", x)]
            printed = "\n".join(quiet).replace(web, "web")
            assert matches(shown, printed), f"$ {command}\n{printed}\n--- documented:\n{shown}"
    finally:
        site.run("delete", web, "--yes", "--missing-ok")
