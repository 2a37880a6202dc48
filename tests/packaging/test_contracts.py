"""The import contracts of pyproject.toml: each can fail, and none leaves a module out."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in LINTER["contracts"]}
PLUGINS = {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}
EXAMPLES = sorted((ROOT / "contrib/examples").glob("vmcloner-*/*.py"))
PUBLIC = "Plugins see the public modules of core, nothing else"
VIOLATIONS = {
    "Core has layers": ("vmcloner_core/units.py", "from vmcloner_core import engine"),
    "Core never imports a plugin": ("vmcloner_core/wrong.py", "import vmcloner_tiny.plugin"),
    PUBLIC: ("vmcloner_tiny/wrong.py", "import vmcloner_core.engine"),
    "Plugins are independent of one another": (
        "vmcloner_tiny/wrong.py", "import vmcloner_files.driver",
    ),
    "One module reads entry points": ("vmcloner_core/wrong.py", "import stevedore"),
    "Only the shell imports cliff": ("vmcloner_core/wrong.py", "import cliff.command"),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a folder with a copy of all packages, side by side."""
    folder = tmp_path_factory.mktemp("copy")
    for source in (ROOT / "vmcloner_core", *(ROOT / "plugins" / name for name in PLUGINS)):
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture
def lint(copy):
    """Return a function that adds a line to a file of the copy, and returns what the linter says.

    Those are the names of the contracts that are broken, and all that it printed.
    """
    touched: dict[Path, str | None] = {}

    def lint(file=None, line=""):
        if file is not None:
            path = copy / file
            before = path.read_text() if path.exists() else None
            touched.setdefault(path, before)
            path.write_text(f"{before or ''}\n{line}\n")
        done = subprocess.run(
            [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
            check=False, cwd=copy, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        )  # fmt: skip
        states = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))
        assert set(states) == set(CONTRACTS), done.stdout + done.stderr
        assert done.returncode == ("BROKEN" in states.values())
        return {name for name, state in states.items() if state == "BROKEN"}, done.stdout

    yield lint
    for path, before in touched.items():
        if before is None:
            path.unlink()
        else:
            path.write_text(before)


def modules_of_core():
    """Return all modules of core, by their dotted names."""
    files = (ROOT / "vmcloner_core").rglob("*.py")
    dotted = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__") for name in dotted}


def public_modules():
    """Return the modules of core that any module of a plugin may import."""
    rules = [rule.split(" -> ") for rule in CONTRACTS[PUBLIC]["ignore_imports"]]
    named = {imported for importers, imported in rules if importers == "**"}
    packages = tuple(f"{name[:-3]}." for name in named if name.endswith(".**"))
    return {name for name in modules_of_core() if name in named or name.startswith(packages)}


def test_contracts_are_kept(lint):
    assert lint()[0] == set()


@pytest.mark.parametrize("name", CONTRACTS)
def test_each_contract_can_fail(lint, name):
    assert name in lint(*VIOLATIONS[name])[0]


@pytest.mark.parametrize("indent", ["", "def late():\n    "])
def test_a_wrong_plugin_breaks_the_contract_with_each_private_module(lint, indent):
    lint("vmcloner_core/new.py")
    private = modules_of_core() - public_modules() | {"vmcloner_core.new"}
    assert {"vmcloner_core", "vmcloner_core.engine", "vmcloner_core.cli.base"} <= private
    lines = [f"{indent}from vmcloner_core import Engine" if name == "vmcloner_core" else
             f"{indent}import {name}" for name in sorted(private)]  # fmt: skip
    broken, said = lint("vmcloner_tiny/wrong.py", "\n".join(lines))
    assert PUBLIC in broken
    named = set(re.findall(r"vmcloner_tiny\.wrong -> (\S+) \(l\.", said.partition(PUBLIC)[2]))
    assert private <= named


def test_a_plugin_may_import_what_is_public(lint):
    lines = [f"import {name}" for name in sorted(public_modules())]
    assert lint("vmcloner_tiny/wrong.py", "\n".join(lines))[0] == set()
    assert lint("vmcloner_tiny/cli.py", "import vmcloner_core.cli.base")[0] == set()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_a_plugin_imports_only_what_is_public(lint, file):
    assert lint("vmcloner_tiny/wrong.py", file.read_text())[0] == set()


def test_no_contract_leaves_a_plugin_out():
    assert set(LINTER["root_packages"]) == {"vmcloner_core", *PLUGINS}
    assert set(CONTRACTS[PUBLIC]["source_modules"]) == PLUGINS
    assert set(CONTRACTS["Core never imports a plugin"]["forbidden_modules"]) == PLUGINS
    assert set(CONTRACTS["Plugins are independent of one another"]["modules"]) == PLUGINS


def test_every_module_of_core_needs_a_layer(lint):
    assert lint("vmcloner_core/new.py")[0] == {"Core has layers"}


def test_docs_name_each_public_module_once():
    text = (ROOT / "docs" / "plugins.md").read_text()
    section = text.partition("## What a plugin may import\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(vmcloner_core[.\w]*)` \|", section, re.MULTILINE)
    packages = {"vmcloner_core.testing"}  # its modules are named in "The proof" above
    expected = {name for name in public_modules() if name.rpartition(".")[0] not in packages}
    assert sorted(named) == sorted({*expected, *packages, "vmcloner_core.cli.base"})
