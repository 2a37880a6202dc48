"""Code that attrs writes is compiled once, and believed only if nobody else could have kept it."""

import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import DictLoader

from vmcloner_core import kept_code, sandbox
from vmcloner_core.kept_code import KeptCode
from vmcloner_core.sandbox import Sandbox, TooMuch, bounded_work

SOURCE = """def __hash__(self):
        return hash((
                {},
                self.a,
            ))"""


@pytest.fixture(autouse=True)
def writes(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def kept(folder):
    return KeptCode(folder / "code")


def is_kept(folder, source):
    """Tell whether a later process wouldn't compile it."""
    later = kept(folder)
    later.compile(source, "<it>", "exec")
    return not later._new


def keep(folder, source):
    first = kept(folder)
    first.compile(source, "<it>", "exec")
    first.save()
    return folder / "code" / "kept"


def test_a_later_start_compiles_nothing_again(tmp_path):
    """What attrs compiles in the first start of a command, the second one has."""
    config = tmp_path / "vmcloner.toml"
    config.write_text(
        f'[hosts.local]\nstate = "{tmp_path}"\n'
        '[hosts.local.hypervisor.kvm]\nuri = "test:///default"\n'
    )
    program = (
        "import sys\n"
        "def saw(event, args):\n"
        "    name = str(args[1]) if event == 'compile' else ''\n"
        "    if name.startswith(('<attrs generated', '<cattrs generated')):\n"
        "        print('compiled', file=sys.stderr)\n"
        "sys.addaudithook(saw)\n"
        f"sys.argv = ['vmcloner', '--config', {str(config)!r}, 'list']\n"
        "from vmcloner_core.cli.__main__ import main\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def compiled(seed):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, timeout=60, check=False,
            env={**environment, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr.count("compiled")

    assert compiled("1") > 50
    assert compiled("2") == 0


def test_what_is_kept_is_what_would_be_compiled(tmp_path):
    keep(tmp_path, "x = 6 * 7")
    assert is_kept(tmp_path, "x = 6 * 7")
    assert not is_kept(tmp_path, "x = 6 * 8")
    found = {}
    exec(kept(tmp_path).compile("x = 6 * 7", "<it>", "exec"), found)
    assert found["x"] == 42


def test_the_number_in_a_hash_differs_in_each_process(tmp_path):
    keep(tmp_path, SOURCE.format(-6890096607687872846))
    assert is_kept(tmp_path, SOURCE.format(967982827255486382))
    assert not is_kept(tmp_path, SOURCE.format(1).replace("self.a", "7"))


def plant(file):
    """Replace what is kept by other code."""
    later = KeptCode(file.parent)
    (key,) = later._codes
    later.add(key, compile("x = 'bad'", "<it>", "exec"))
    later.save()


@pytest.mark.parametrize("spoiled", ["kept", "."])
def test_what_others_can_write_is_not_believed(tmp_path, spoiled):
    file = keep(tmp_path, "x = 1")
    plant(file)
    assert is_kept(tmp_path, "x = 1")  # believed, so far
    (file.parent / spoiled).chmod(0o777)
    assert not is_kept(tmp_path, "x = 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_nothing_is_kept_in_the_home_of_another_user(tmp_path):
    """Of the user that calls sudo, whose files are trusted elsewhere."""
    file = keep(tmp_path, "x = 1")
    os.chown(file.parent, 1000, 1000)
    assert not is_kept(tmp_path, "x = 1")
    file.unlink()
    keep(tmp_path, "x = 1")
    assert not file.exists()


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: marshal.dumps(7), lambda b: b[:-5]])
def test_a_damaged_file_is_written_again(tmp_path, damage):
    file = keep(tmp_path, "x = 1")
    file.write_bytes(damage(file.read_bytes()))
    assert not is_kept(tmp_path, "x = 1")
    keep(tmp_path, "x = 1")
    assert is_kept(tmp_path, "x = 1")


def test_no_byte_of_the_file_may_differ(tmp_path):
    """Some would be another name or number in the code that is run."""
    file = keep(tmp_path, "x = 1")
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert not is_kept(tmp_path, "x = 1")


def test_no_bytecode_is_written_if_python_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert not keep(tmp_path, "x = 1").exists()


def test_a_home_that_is_read_only(tmp_path):
    (tmp_path / "code").write_text("a file")
    keep(tmp_path, "x = 1")
    assert not is_kept(tmp_path, "x = 1")


def test_a_home_that_cannot_be_looked_at(tmp_path):
    """A name that is too long fails for root too, as a folder of others' does for users."""
    closed = tmp_path / ("x" * 300)
    keep(closed, "x = 1")
    assert not is_kept(closed, "x = 1")


def test_no_folder_is_made_where_a_user_happens_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep(Path("~"), "x = 1")
    assert list(tmp_path.iterdir()) == []


class Loud(Sandbox):
    """A sandbox that tells what it parses."""

    def _parse(self, source, name, filename):
        parsed.append(name)
        return super()._parse(source, name, filename)


parsed = []


def rendered(text, name="a", **options):
    """Render a template in a new sandbox; return its text, and whether it was parsed for that."""
    parsed.clear()
    environment = Loud(loader=DictLoader({name: text}), **options)
    with bounded_work():
        return environment.get_template(name).render(x="<"), bool(parsed)


def test_templates_are_compiled_once(tmp_path, monkeypatch):
    first = kept(tmp_path)
    monkeypatch.setattr(kept_code, "used", first)
    assert rendered("{{ x }}\n") == ("<", True)
    assert rendered("{{ x }}\n") == ("<", False)
    first.save()
    monkeypatch.setattr(kept_code, "used", kept(tmp_path))
    assert rendered("{{ x }}\n") == ("<", False)
    assert rendered("{{ x }}!") == ("<!", True)  # another text
    assert rendered("{{ x }}\n", name="b") == ("<", True)  # a name that messages have
    assert rendered("{{ x }}\n", autoescape=True) == ("&lt;", True)  # other options
    monkeypatch.setattr(sandbox, "_COMPILER", __file__)
    assert rendered("{{ x }}\n") == ("<", True)  # another jinja2
    monkeypatch.setattr("jinja2.__version__", "999")
    assert rendered("{{ x }}\n") == ("<", True)  # with files of the same time and size
    assert rendered("{{ x }}\n") == ("<", False)
    monkeypatch.setattr(kept_code, "used", None)
    assert rendered("{{ x }}\n") == ("<", True)


def test_what_a_kept_template_spends_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_code, "used", kept(tmp_path))
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for known in (False, True):
        with pytest.raises((TooMuch, OverflowError)):
            rendered(endless)
        assert parsed == ([] if known else ["a"])
