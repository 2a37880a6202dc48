"""What users type to reach clones, against real sshd's: ssh, exec, inventory, audit, wait."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import TEMPLATE
from tests.reach.conftest import USER, keygen, listens
from vmcloner_core import audit, ssh_access
from vmcloner_core.plan import Readiness
from vmcloner_core.readiness import Awaited, Sight, Ssh

BIN = Path(sys.executable).parent


class Replaced(Exception):
    """In the place of another program's taking over the process."""


@pytest.fixture
def execvp(monkeypatch):
    argvs = []

    def replace(file, argv):
        assert file == argv[0] == "ssh"
        argvs.append(argv)
        raise OSError(0, "replaced")

    monkeypatch.setattr(os, "execvp", replace)
    return argvs


@pytest.mark.parametrize(
    "words",
    [
        ("echo", "$VMCLONER_GUEST", "-l"),
        ("--", "echo", "$VMCLONER_GUEST", "-l"),
        ("echo", "-v", "--config", "c", "-q"),
    ],
)
def test_ssh(web, run, execvp, words):
    """The command's options are its own, also those that vmcloner has too."""
    run("ssh", "web-2", *words)
    done = subprocess.run(execvp[0], capture_output=True, text=True, timeout=30, check=True)
    said = " ".join(word for word in words if word not in ("--", "echo"))
    assert done.stdout == said.replace("$VMCLONER_GUEST", "web-2") + "\n"


@pytest.mark.parametrize(
    ("words", "options", "command"),
    [
        ((), (), ()),
        (("-A", "-v"), ("-A", "-v"), ()),
        (("-L", "8080:localhost:80"), ("-L", "8080:localhost:80"), ()),
        (("-L8080:localhost:80", "ls", "-L"), ("-L8080:localhost:80",), ("ls", "-L")),
        (("-vNL", "80:a:80", "-tt", "top"), ("-vNL", "80:a:80", "-tt"), ("top",)),
        (("-o", "LogLevel=DEBUG", "--", "-x"), ("-o", "LogLevel=DEBUG"), ("-x",)),
        (("-h", "--help"), ("-h", "--help"), ()),
        (("--", "-A", "--"), (), ("-A", "--")),
        (("-", "-A"), (), ("-", "-A")),
        (("-p", "--", "true"), ("-p", "--"), ("true",)),
    ],
)
def test_options_of_ssh_follow_the_clone(web, run, execvp, words, options, command):
    run("ssh", "web-2", *words)
    (argv,) = execvp
    assert argv[:3] == ["ssh", "-F", "none"]
    assert argv[3 : 3 + len(options)] == list(options)
    assert argv[3 + len(options)] == "-o"
    assert argv[-2 - len(command) :] == ["--", "web-2", *command]


def test_options_of_ssh_come_before_ours(web, run, execvp):
    """So a user who asks for another port or user gets it."""
    run("ssh", "web-2", "-G", "-p", "2022", "-l", "bob")
    out = subprocess.run(execvp[0], capture_output=True, text=True, timeout=30, check=True).stdout
    assert {"port 2022", "user bob", "stricthostkeychecking true"} <= set(out.splitlines())


def test_an_option_of_ssh_without_its_value(web, run, execvp):
    code, _, err = run("ssh", "web-2", "-v", "-L")
    assert code == 2
    assert "-L needs a value" in err
    assert execvp == []


@pytest.mark.parametrize(
    ("text", "argument", "shown"),
    [
        ("8080:80", "8080:localhost:80", "localhost:8080 -> localhost:80"),
        ("5432", "5432:localhost:5432", "localhost:5432 -> localhost:5432"),
        ("8080:db.internal:80", "8080:db.internal:80", "localhost:8080 -> db.internal:80"),
        ("0.0.0.0:8080:80", "0.0.0.0:8080:localhost:80", "0.0.0.0:8080 -> localhost:80"),
        ("[::1]:8080:[fd00::1]:80", "[::1]:8080:[fd00::1]:80", "[::1]:8080 -> [fd00::1]:80"),
    ],
)
def test_forward(web, run, execvp, text, argument, shown):
    _, out, err = run("forward", "web-2", text, "9:9")
    assert out.splitlines() == [
        f"{shown} of web-2",
        "localhost:9 -> localhost:9 of web-2",
    ]
    assert "Ctrl-C ends it" in err
    (argv,) = execvp
    assert argv[3:9] == ["-N", "-T", "-L", argument, "-L", "9:localhost:9"]
    assert "ExitOnForwardFailure=yes" in argv


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0:80",
        "80:0",
        "65536:80",
        "80:",
        ":80",
        "a:b",
        "1:2:3:4:5",
        "a:80",
        "80:a:b",
        "-N",
        "::1:80",
    ],
)
def test_forward_refuses(web, run, execvp, text):
    code, _, err = run("forward", "web-2", text)
    assert code == 2, err
    assert execvp == []


def test_a_port_is_forwarded(web, run, execvp, guests):
    """The guest's own sshd answers on a port of this host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run("forward", "web-2", f"127.0.0.1:{port}:127.0.0.2:{guests.port}")
    process = subprocess.Popen(execvp[0], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not listens("127.0.0.1", port):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:
            assert stream.recv(8).startswith(b"SSH-2.0")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_ssh_never_asks_about_a_host_key(web, run, execvp):
    """It refuses at once, though there is a terminal to ask on."""
    run("ssh", "web-4", "true")
    argv = ["script", "-qec", subprocess.list2cmdline(execvp[0]), "/dev/null"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stdout
    assert b"(yes/no" not in done.stdout


def test_ssh_says_why_it_cannot(web, run, execvp):
    web.engine.stop("web-1")
    assert run("ssh", "web-1")[0] == 6
    del web.machines.found["web-2"]
    code, _, err = run("ssh", "web-2")
    assert code == 6
    assert "vmcloner wait web-2 --for ip" in err
    run("create", "user", "-t", "t2", "--start")  # its card is of user mode
    code, _, err = run("ssh", "user-1")
    assert code == 6
    assert "no address is known (in [[nics]]: kind" in err
    (web.engine.host.records / "web-3" / "known_hosts").unlink()
    code, _, err = run("ssh", "web-3")
    assert code == 6
    assert "no known host key" in err
    code, _, err = run("ssh", "web-9")
    assert code == 4
    assert execvp == []


FORWARD = '[[nics]]\nkind = "user"\nforward = 22\n'


def test_a_forwarded_port_is_where_ssh_goes(lab, run):
    lab.template("nat", f"{TEMPLATE}{FORWARD}")
    lab.engine.create("nat", "nat", count=1, start=True)
    folder = lab.engine.host.records / "nat-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "known_hosts").write_text("nat-1 ssh-ed25519 AAAA\n")
    lab.machines.found["nat-1"] = ("127.1.2.3",)
    (row,) = json.loads(run("inventory", "nat", "-f", "json")[1])
    assert (row["address"], row["port"]) == ("127.1.2.3", 2222)
    lab.machines.found["nat-1"] = ("192.0.2.1",)  # another of its cards
    (row,) = json.loads(run("inventory", "nat", "-f", "json")[1])
    assert (row["address"], row["port"]) == ("192.0.2.1", 22)


def test_another_port_than_that_of_ssh_is_forwarded(lab, run):
    lab.template("nat", f"{TEMPLATE}[ssh]\nport = 2022\n{FORWARD}")
    lab.engine.create("nat", "nat", count=1, start=True)
    folder = lab.engine.host.records / "nat-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "known_hosts").write_text("nat-1 ssh-ed25519 AAAA\n")
    lab.machines.found["nat-1"] = ("127.1.2.3",)
    code, _, err = run("ssh", "nat-1")
    assert code == 6
    assert "forward = 2022" in err


def test_a_forwarded_port_says_nothing_when_it_is_knocked_at(lab, run):
    lab.template("nat", f"{TEMPLATE}{FORWARD}")
    code, _, err = run("create", "nat", "-t", "nat", "--for", "port:22")
    assert code == 3
    assert "before the guest does (wait for ssh" in err
    assert run("create", "nat", "-t", "nat", "--for", "ip", "--dry-run")[0] == 0


def test_exec_gathers_what_is_the_same(web, run):
    code, out, err = run("exec", "web-[1-3]", "--", "echo", "hi;", "echo", "same >&2")
    assert code == 0
    rule = "-" * 15
    assert out == f"{rule}\nweb-[1-3] (3)\n{rule}\nhi\n"
    assert err == f"{rule}\nweb-[1-3] (3)\n{rule}\nsame\n"


def test_exec_tells_who_failed(web, run):
    command = 'echo $VMCLONER_GUEST; [ "$VMCLONER_GUEST" != web-2 ] || exit 7'
    code, out, err = run("exec", "web", "--", command)
    assert code == 10
    assert "web-1\n" in out
    assert "vmcloner: web-2: exited with 7\n" in err
    assert "vmcloner: web-4: ssh: Host key verification failed" in err
    assert err.endswith("exec: 2 of 4 clones failed: web-[2,4]\n")


def test_exec_tells_the_next_step_and_each_name_once(web, run):
    web.engine.stop("web-[1-2]", kill=True)
    code, _, err = run("exec", "web-[1-3]", "--", "true")
    assert code == 10
    assert err.splitlines()[0] == (
        "vmcloner: web-[1-2] are stopped (vmcloner start web-[1-2] --wait)"
    )


def another_users(web, guests, monkeypatch, key):
    """Let the clones' records authorize a key that isn't this user's."""
    ssh = f'[ssh]\nuser = "{USER}"\nport = {guests.port}\n'
    lines = '[[nics]]\nkind = "bridge"\nsource = "br0"\n'
    web.template("t1", f"{TEMPLATE}{ssh}{lines}")
    real = ssh_access.access

    def access(template, labels, address, known_hosts, _authorized):
        template = web.engine.template("t1")
        return real(template, labels, address, known_hosts, (key,))

    monkeypatch.setattr(ssh_access, "access", access)


@pytest.fixture
def strange(web, guests, monkeypatch, tmp_path):
    """A fleet of another user's; returns what to do, and that user's public key."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    theirs = keygen(tmp_path / "theirs")
    another_users(web, guests, monkeypatch, theirs)
    owner = web.engine.show("web-1").labels.owner
    step = f"it lets in the keys of {owner}, who made it: give one of these, vmcloner ssh web-1 -i"
    return step, theirs


def test_a_login_with_another_users_key(web, run, strange):
    code, _, err = run("exec", "web-1", "--", "true")
    assert code == 10
    assert f"web-1: ssh: {USER}@127.0.0.1: Permission denied" in err
    assert strange[0] in err
    code, out, _ = run("wait", "web-1", "--for", "ssh", "--timeout", "4")
    assert code == 10
    assert strange[0].split(":")[0] in " ".join(out.split())
    code, out, _ = run("inventory", "web-1", "--format", "json")
    assert "refusal" not in json.loads(out)[0]


def test_a_shell_with_another_users_key(web, run, strange, execvp, tmp_path):
    step, theirs = strange
    _, _, err = run("ssh", "web-1")
    assert f"web-1 may refuse your keys: {step}" in err
    _, _, err = run("ssh", "web-1", "-i", str(tmp_path / "theirs"))
    assert "may refuse" not in err
    (tmp_path / "me" / ".ssh").mkdir(parents=True)
    (tmp_path / "me" / ".ssh" / "id_ed25519.pub").write_text(f"{theirs} with a comment\n")
    _, _, err = run("ssh", "web-1")
    assert "may refuse" not in err


def test_exec_in_json(web, run):
    web.engine.stop("web-3")
    code, out, _ = run("exec", "-f", "json", "web-1", "web-3", "--", "echo $VMCLONER_GUEST; exit 3")
    assert code == 10
    first, second = json.loads(out)
    assert first == {
        "name": "web-1", "status": "failed", "code": 3, "stdout": "web-1\n", "stderr": "",
        "error": None,
    }  # fmt: skip
    assert (second["code"], second["status"]) == (None, "failed")
    assert "web-3 is stopped" in second["error"]


def test_exec_options_may_follow_the_targets_and_the_command_has_its_own(web, run):
    code, out, _ = run("exec", "web-1", "-f", "json", "--timeout", "30", "--", "echo", "-f", "--")
    assert code == 0
    assert json.loads(out)[0]["stdout"] == "-f --\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("exec", "web"), 2, "no command"),
        (("exec", "web", "--"), 2, "no command"),
        (("exec", "--", "true"), 3, "exec needs a target"),
        (("exec", "web", "--all", "--", "true"), 3, "not both"),
        (("exec", "gone", "--", "true"), 4, "gone"),
        (("exec", "web", "-j", "0", "--", "true"), 3, "jobs must be"),
        (("exec", "web", "--timeout", "nan", "--", "true"), 3, "timeout must be"),
        (("exec", "web", "--", "x" * 131_072), 3, "longer than"),
        (("audit", "web", "-j", "-1"), 3, "jobs must be"),
        (("inventory",), 3, "inventory needs a target"),
        (("audit", "gone"), 4, "gone"),
        (("wait", "web", "--for", "port:x"), 3, "a port is"),
        (("create", "x", "-t", "t1", "--min-ready", "90%"), 2, "--wait"),
    ],
)
def test_mistakes(web, run, words, code, message):
    found, _, err = run(*words)
    assert found == code
    assert message in err


def test_exec_cuts_off_the_slow(web, run):
    code, _, err = run("exec", "web-1", "--timeout", "1", "--", "sleep", "60")
    assert code == 10
    assert "web-1: not done within 1.0 s" in err


# --- inventory ----------------------------------------------------------------------------------


def test_inventory_for_ssh(web, run, tmp_path):
    code, out, _ = run("inventory", "web", "--format", "ssh-config")
    assert code == 0
    config = tmp_path / "config"
    config.write_text(out)
    argv = ["ssh", "-F", str(config), "-oBatchMode=yes", "web-3", "echo $VMCLONER_GUEST"]
    assert subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout == b"web-3\n"


def test_inventory_in_json(web, run, guests):
    code, out, _ = run("inventory", "web-2", "-f", "json")
    assert code == 0
    (row,) = json.loads(out)
    assert list(row) == ["name", "address", "user", "port", "known_hosts", "key", "jump"]
    assert (row["name"], row["address"], row["port"]) == ("web-2", "127.0.0.2", guests.port)


def test_inventory_leaves_out_who_cannot_be_reached(web, run):
    web.engine.stop("web-3")
    code, out, err = run("inventory", "web")
    assert code == 10
    assert sorted(yaml.safe_load(out)["all"]["children"]["web"]["hosts"]) == [
        "web-1",
        "web-2",
        "web-4",
    ]
    assert "web-3 is stopped" in err


def ansible(program, *words, folder):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    return subprocess.run(
        [str(BIN / program), *words],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_ansible_runs_the_inventory_script(web, run, tmp_path):
    web.engine.stop("web-3")
    code, out, err = run("inventory", "--list")
    assert code == 0, "else Ansible ignores it all"
    assert "web-3 is stopped" in err
    script = tmp_path / "vmcloner.sh"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{out}\nEND\n")
    script.chmod(0o755)
    listed = ansible("ansible-inventory", "-i", str(script), "--list", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert found["web"]["hosts"] == ["web-1", "web-2", "web-4"]
    assert found["_meta"]["hostvars"]["web-2"]["ansible_host"] == "127.0.0.2"
    ping = ansible("ansible", "-i", str(script), "web-2", "-m", "ping", folder=tmp_path)
    assert '"pong"' in ping.stdout, ping.stdout + ping.stderr


def test_the_inventory_script_for_one_host(web, run):
    every = json.loads(run("inventory", "web", "--list")[1])["_meta"]["hostvars"]
    code, out, _ = run("inventory", "--host", "web-2")
    assert code == 0
    assert json.loads(out) == every["web-2"]
    assert run("inventory", "--host=web-2", "-q")[1] == out
    assert run("inventory", "--host", "web-9")[0] == 4
    assert run("inventory", "--host", "web-2", "web")[0] == 2
    assert run("inventory", "--host", "web-2", "--list")[0] == 2


def test_the_inventory_script_without_clones(lab, run):
    code, out, _ = run("inventory", "--list")
    assert code == 0
    assert json.loads(out) == {"_meta": {"hostvars": {}}, "all": {"children": ["ungrouped"]}}


def test_ansible_takes_the_inventory(web, run, tmp_path):
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(run("inventory", "web-[1-2]", "--format", "ansible")[1])
    listed = ansible("ansible-inventory", "-i", str(hosts), "--list", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "WARNING" not in listed.stderr
    found = json.loads(listed.stdout)
    assert found["web"]["hosts"] == ["web-1", "web-2"]
    assert found["_meta"]["hostvars"]["web-1"]["vmcloner_index"] == 1
    pinged = ansible("ansible", "-i", str(hosts), "web", "-m", "ping", folder=tmp_path)
    assert pinged.returncode == 0, pinged.stdout + pinged.stderr
    assert pinged.stdout.count('"ping": "pong"') == 2


def test_ansible_takes_what_its_page_shows(web, run, tmp_path):
    """docs/ansible.md: a playbook, more groups for an inventory, and the variables of a clone."""
    page = (Path(__file__).parents[2] / "docs" / "ansible.md").read_text()
    shown = re.findall(r"^```yaml\n# (\S+\.yml): (.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in shown] == ["groups.yml", "site.yml"]
    for name, text in shown:
        (tmp_path / name).write_text(text.partition("\n")[2])
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(run("inventory", "web-[1-2]")[1])
    inventories = ("-i", str(hosts), "-i", str(tmp_path / "groups.yml"))
    listed = ansible("ansible-inventory", *inventories, "--list", folder=tmp_path)
    assert json.loads(listed.stdout)["primary"]["hosts"] == ["web-1"], listed.stderr
    playbook = str(tmp_path / "site.yml")
    checked = ansible("ansible-playbook", *inventories, "--syntax-check", playbook, folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    told = set(re.findall(r"`((?:ansible|vmcloner)_\w+)`", page))
    assert told >= json.loads(listed.stdout)["_meta"]["hostvars"]["web-2"].keys()


def test_ansible_believes_no_other_host_key(web, run, tmp_path):
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(run("inventory", "web-4")[1])
    pinged = ansible("ansible", "-i", str(hosts), "web", "-m", "ping", folder=tmp_path)
    assert pinged.returncode != 0
    assert "Host key verification failed" in pinged.stdout


@pytest.mark.parametrize(
    ("fleet", "group"), [("my-fleet", "my_fleet"), ("all", "fleet_all"), ("2nd", "fleet_2nd")]
)
def test_groups_have_names_that_ansible_takes(lab, run, fleet, group):
    lab.engine.create(fleet, "t1", count=1, start=True)
    name = f"{fleet}-1"
    lab.machines.found[name] = ("192.0.2.1",)
    folder = lab.engine.host.records / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "known_hosts").write_text("")
    code, out, _ = run("inventory", fleet)
    assert code == 0
    assert list(yaml.safe_load(out)["all"]["children"]) == [group]


# --- readiness ----------------------------------------------------------------------------------


def test_wait_for_a_login(web):
    result = web.engine.wait("web-[1-3]", wait=Readiness.parse("ssh", timeout=120))
    assert len(result.results) == 3


def test_a_login_with_another_host_key_is_none(guests, web):
    """It says so, and goes on trying: a guest may get its keys after its sshd began."""
    clone = Awaited(
        name="web-4",
        driver=web.machines,
        readiness=Readiness.parse("ssh"),
        access=lambda address: guests.access("web-4", address=address),
    )
    condition, sight = Ssh(clone), Sight()
    deadline = time.monotonic() + 120
    while "Host key verification failed" not in condition.lacks:
        assert time.monotonic() < deadline
        sight.look([clone])
        assert not condition.met(sight)
        time.sleep(0.05)
    condition.close()
    assert sight.logins == 0


# --- audit --------------------------------------------------------------------------------------


def test_an_audit_that_reached_nobody_has_no_table_of_zeros(web, run):
    web.engine.stop("web", kill=True)
    code, out, err = run("audit", "web")
    assert (code, out) == (10, "")
    assert "web-[1-4] are stopped (vmcloner start web-[1-4] --wait)" in err
    assert len(json.loads(run("audit", "web", "-f", "json")[1])) == len(audit.FACTS)


def test_an_audit_says_a_reason_once(web, run):
    run("create", "user", "-t", "t2", "-n", "3", "--start")  # its card is of user mode
    code, out, err = run("audit", "user")
    assert code == 10
    assert out == ""
    first, last = err.splitlines()
    assert first.startswith("vmcloner: user-[1-3]: no address is known (in [[nics]]")
    assert "3 of 3 clones not proven unique" in last


def test_audit_finds_that_these_guests_are_one_machine(web, run):
    """They are sshd's of this very machine: whatever is read is the same for all."""
    code, out, err = run("audit", "web-[1-3]", "-f", "json")
    assert code == 10
    verdicts = {row["fact"]: row for row in json.loads(out)}
    assert list(verdicts) == list(audit.FACTS)
    hostname = os.uname().nodename
    assert verdicts["hostname"] == {
        "fact": "hostname", "read": 3, "distinct": 1, "missing": [],
        "shared": [{"value": hostname, "clones": ["web-1", "web-2", "web-3"]}],
    }  # fmt: skip
    assert "3 of 3 clones" in err


def test_audit_counts_those_it_could_not_ask(web, run):
    web.engine.stop("web-2")
    code, _, err = run("audit", "web-2", "web-4")
    assert code == 10
    assert "web-2 is stopped" in err
    assert "Host key verification failed" in err
    assert "2 of 2 clones" in err
