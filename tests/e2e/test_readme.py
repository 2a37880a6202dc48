"""What the README shows of the library works as written."""

import re
from pathlib import Path

import pytest

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
