"""What the README shows of the library works as written."""

import re
from pathlib import Path

import pytest

from benchmarks import first_ssh

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.libvirt
@pytest.mark.timeout(600)
def test_the_engine_example(site, monkeypatch, capsys):
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if "Engine.open" in block
    )
    fleet = site.fleet("ci")
    monkeypatch.chdir(site.folder)
    monkeypatch.setenv("VMCLONER_CONFIG", str(site.folder / "vmcloner.toml"))
    exec(compile(example.replace('"ci"', repr(fleet)), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[f"{fleet}-{n}", "running"] for n in (1, 2, 3)]
    assert len({line.split()[2] for line in lines}) == 3
    assert site.rows() == []


def test_the_commands_that_are_measured_are_the_readmes():
    commands = first_ssh.readme_commands(README.read_text())
    assert [words[1] for words in commands] == ["host", "create", "ssh"]
    prepare, create, ssh = first_ssh.adapted(commands, "x", 1, "net")
    assert prepare[-2:] == ["--name", "net"]
    assert create == [
        "vmcloner",
        "create",
        "x",
        "-t",
        "debian-12-built",
        "-n",
        "1",
        "--start",
        "--wait",
    ]
    assert ssh == ["vmcloner", "ssh", "x-1", "true"]
    as_written = first_ssh.adapted(commands, "lab", None, "vmcloner")
    assert as_written[1] == commands[1]
    assert as_written[2] == [*commands[2], "true"]
