"""Scripts and playbooks of a lab, run by ssh in real sshd's: once on each clone."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import attrs
import pytest

from tests.conftest import TEMPLATE
from tests.reach.conftest import USER
from vmcloner_core import scripts
from vmcloner_core.errors import HostCommandError, Interrupted, PartialFailure, WrongState
from vmcloner_core.labs import read_lab
from vmcloner_core.model import Script
from vmcloner_core.testing.samples import make_labels


@pytest.fixture
def shop(guests, lab):
    """A fleet of three whose clones are sshd's, and a function that writes its lab's file."""
    ssh = f'[ssh]\nuser = "{USER}"\nport = {guests.port}\nkey = "{guests.key}"\n'
    lab.template("t1", f'{TEMPLATE}{ssh}[[nics]]\nkind = "bridge"\nsource = "br0"\n')

    def write(keys, count=3):
        file = lab.folder / "lab.toml"
        file.write_text(f'name = "shop"\n[fleets.web]\ntemplate = "t1"\ncount = {count}\n{keys}\n')
        return read_lab(file)

    lab.engine.create("web", "t1", count=3, start=True, lab="shop")
    for name in guests.names[:3]:
        shutil.copy(guests.folder / name / "known_hosts", lab.engine.host.records / name)
        lab.machines.found[name] = (guests.address(name),)
    return write


@pytest.fixture
def script(lab):
    """Return a function that writes a script; what it does is noted in the file ``done``."""
    (lab.folder / "done").write_text("")

    def write(name, text):
        (lab.folder / name).write_text(text.replace("DONE", str(lab.folder / "done")))

    return write


def done(lab):
    return sorted((lab.folder / "done").read_text().split())


NOTE = 'echo "$VMCLONER_GUEST-{}" >> "DONE"\n'


def test_scripts_run_once_on_each_clone_in_their_order(shop, lab, script):
    script("one.sh", NOTE.format("one"))
    script("two", "#!/usr/bin/env python3\nimport os\nopen('DONE', 'a').write("
                  "os.environ['VMCLONER_GUEST'] + '-two\\n')\n")  # fmt: skip
    both = shop('run = ["one.sh", "two"]')
    found = lab.engine.diff_lab(both)
    assert [(c.action, c.name, c.why) for c in found] == [
        ("provision", f"web-{n}", "one.sh, two") for n in (1, 2, 3)
    ]
    lab.engine.apply_lab(both)
    assert done(lab) == sorted(f"web-{n}-{what}" for n in (1, 2, 3) for what in ("one", "two"))
    assert lab.engine.diff_lab(both) == ()
    again = lab.engine.apply_lab(both)
    assert [r.plan.action for r in again.results] == ["wait"]
    assert len(done(lab)) == 6


def test_only_where_it_failed_it_runs_again(shop, lab, script):
    script("one.sh", NOTE.format("one"))
    fails = '[ "$VMCLONER_GUEST" != web-2 ] || { echo to the log; echo no disk >&2; exit 3; }\n'
    script("two.sh", fails + NOTE.format("two"))
    script("three.sh", NOTE.format("three"))
    keys = 'run = ["one.sh", "two.sh", "three.sh"]'
    with pytest.raises(PartialFailure) as caught:
        lab.engine.apply_lab(shop(keys))
    ((name, error),) = caught.value.failures
    assert (name, error.message) == ("web-2", "web-2: two.sh: failed with 3: no disk")
    log = lab.engine.host.records / "web-2" / "run.log"
    assert str(log) in error.hint
    assert log.read_text() == "== one.sh\n== two.sh\nto the log\nno disk\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert [(c.name, c.why) for c in lab.engine.diff_lab(shop(keys))] == [
        ("web-2", "two.sh, three.sh")
    ]
    script("two.sh", NOTE.format("two"))
    lab.engine.apply_lab(shop(keys))
    assert done(lab) == sorted(
        f"web-{n}-{what}" for n in (1, 2, 3) for what in ("one", "two", "three")
    )


def test_a_script_that_changed_runs_again_only_on_demand(shop, lab, script):
    script("one.sh", NOTE.format("one"))
    lab.engine.apply_lab(shop('run = ["one.sh"]'))
    script("one.sh", NOTE.format("new"))
    changed = shop('run = ["one.sh"]')
    assert {(c.action, c.option, c.why) for c in lab.engine.diff_lab(changed)} == {
        ("provision", "--provision", "one.sh changed since it ran")
    }
    assert lab.engine.apply_lab(changed).changes == ()
    assert len(done(lab)) == 3
    lab.engine.apply_lab(changed, provision=True)
    assert len(done(lab)) == 6
    assert lab.engine.diff_lab(changed) == ()


def test_a_reset_loses_what_ran(shop, lab, script, guests):
    script("one.sh", NOTE.format("one"))
    one = shop('run = ["one.sh"]')
    lab.engine.apply_lab(one)
    lab.engine.stop("web-1", kill=True)
    lab.engine.start("web-1")
    assert lab.engine.diff_lab(one) == ()
    lab.engine.reset("web-3")
    assert [(c.action, c.name) for c in lab.engine.diff_lab(one)] == [("provision", "web-3")]
    lab.engine.apply_lab(one)
    assert len(done(lab)) == 4


def test_a_disk_that_is_made_again_has_had_no_script(shop, lab, script):
    script("one.sh", NOTE.format("one"))
    one = shop('run = ["one.sh"]')
    lab.engine.apply_lab(one)
    lab.engine.stop("web-2", kill=True)
    lab.pool.disks.pop("web-2-disk0")
    lab.engine.create("web", "t1", count=3)
    assert ("provision", "web-2") in [(c.action, c.name) for c in lab.engine.diff_lab(one)]


def test_a_domain_that_is_defined_again_keeps_what_ran(shop, lab, script):
    script("one.sh", NOTE.format("one"))
    one = shop('run = ["one.sh"]')
    lab.engine.apply_lab(one)
    lab.machines.machines.pop("web-2")
    assert [(c.action, c.name) for c in lab.engine.diff_lab(one)] == [("complete", "web-2")]
    lab.engine.create("web", "t1", count=3, start=True)
    assert lab.engine.diff_lab(one) == ()


def test_endless_output_takes_no_memory_and_a_script_ends_in_time(shop, lab, script, monkeypatch):
    from vmcloner_core import scripts

    monkeypatch.setattr(scripts.run, "__defaults__", (3.0,))
    script("loud.sh", "yes no\n")
    with pytest.raises(PartialFailure) as caught:
        lab.engine.apply_lab(shop('run = ["loud.sh"]'))
    assert "not done within 3.0 s" in str(caught.value.failures[0][1])


def test_a_script_that_hangs_ends_with_its_run(shop, lab, script):
    script("hangs.sh", f"{NOTE.format('begun')}sleep 100\n")
    hangs = shop('run = ["hangs.sh"]')

    def cancel():
        while len(done(lab)) < 3:
            time.sleep(0.05)
        lab.engine.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises((Interrupted, PartialFailure)):
        lab.engine.apply_lab(hangs)
    thread.join()
    assert [c.why for c in lab.engine.diff_lab(hangs)] == ["hangs.sh"] * 3


def test_what_a_script_leaves_running_keeps_nobody_waiting(shop, lab, script):
    script("daemon.sh", "sleep 100 & echo started\n")
    lab.engine.apply_lab(shop('run = ["daemon.sh"]'))
    assert lab.engine.diff_lab(shop('run = ["daemon.sh"]')) == ()


def test_a_playbook(shop, lab, script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (lab.folder / "site.yml").write_text(
        f"""
        - hosts: web
          gather_facts: false
          tasks:
            - raw: echo "$VMCLONER_GUEST-{{{{ vmcloner_index }}}}" >> "{lab.folder}/done"
            - fail: {{msg: no such thing}}
              when: vmcloner_index == 2
        """
    )
    (lab.folder / "done").write_text("")
    book = shop('playbook = "site.yml"')
    with pytest.raises(PartialFailure) as caught:
        lab.engine.apply_lab(book)
    assert [name for name, _ in caught.value.failures] == ["web-2"]
    log = lab.engine.host.records / "web-2" / "run.log"
    assert "no such thing" in log.read_text()
    assert done(lab) == ["web-1-1", "web-2-2", "web-3-3"]
    assert [c.name for c in lab.engine.diff_lab(book)] == ["web-2"]


JUMPS = """#!/bin/sh
for word in "$@"; do
    if [ "$word" = -W ]; then echo "$*" >> "FOLDER/jumps"; exec SSH -F "FOLDER/config" "$@"; fi
done
exec SSH "$@"
"""


def test_a_playbook_reaches_a_guest_behind_its_host(guests, tmp_path, monkeypatch):
    """The host is an sshd too, which the user's ssh_config knows as lab1."""
    (tmp_path / "config").write_text(
        f"Host lab1\nHostName 127.0.0.1\nPort {guests.port}\nUser {USER}\nHostKeyAlias web-1\n"
        f'IdentityFile "{guests.key}"\nUserKnownHostsFile "{guests.folder}/web-1/known_hosts"\n'
        "StrictHostKeyChecking yes\n"
    )
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(JUMPS.replace("FOLDER", str(tmp_path)).replace("SSH", shutil.which("ssh")))
    ssh.chmod(0o755)
    tools = f"{tmp_path}/bin:{Path(sys.executable).parent}"
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    book = tmp_path / "site.yml"
    book.write_text(
        f"""
        - hosts: web
          gather_facts: false
          tasks:
            - raw: echo "$VMCLONER_GUEST" >> "{tmp_path}/done"
        """
    )
    script = Script(name="site.yml", content=book.read_bytes(), playbook=book)
    access = guests.access("web-2", jump="lab1", key=None, keys=(guests.key,))
    scripts.run(script, make_labels("web", 2), attrs.evolve(access, jump=None))  # is kept open
    assert not (tmp_path / "jumps").exists()
    scripts.run(script, make_labels("web", 2), access)
    assert (tmp_path / "done").read_text() == "web-2\n" * 2
    assert "-- lab1" in (tmp_path / "jumps").read_text()


def test_without_an_address_scripts_cannot_run(shop, lab, script):
    script("one.sh", "true")
    lab.machines.found.pop("web-1")
    with pytest.raises(PartialFailure) as caught:
        lab.engine.apply_lab(shop('timeout = 2\nrun = ["one.sh"]', 1))
    ((name, error),) = caught.value.failures
    assert name == "web-1"
    assert isinstance(error, (HostCommandError, WrongState))


def test_a_guest_whose_host_key_is_another_gets_no_script(shop, lab, script, guests):
    script("one.sh", NOTE.format("one"))
    lab.engine.apply_lab(shop('run = ["one.sh"]'))  # only the fourth is under the short limit
    lab.engine.create("web", "t1", count=4, start=True)
    shutil.copy(guests.folder / "web-4" / "known_hosts", lab.engine.host.records / "web-4")
    lab.machines.found["web-4"] = (guests.address("web-4"),)
    with pytest.raises(PartialFailure):
        lab.engine.apply_lab(shop('timeout = 3\nrun = ["one.sh"]', 4))
    assert done(lab) == ["web-1-one", "web-2-one", "web-3-one"]
