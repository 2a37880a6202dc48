"""One command on many clones, against real sshd's."""

import os
import subprocess
import threading
import time

import pytest

from vmcloner_core import remote, ssh
from vmcloner_core.errors import DeadlineExceeded, HostCommandError, InvalidRequest


def run(site, command, *names, timeout=30.0, **options):
    answers = remote.run(site.accesses(*names), command, timeout=timeout, **options)
    return {answer.name: answer for answer in answers}


def test_each_answers_for_itself(guests):
    answers = run(guests, "echo $VMCLONER_GUEST; echo oops >&2; exit 3", "web-1", "web-2")
    assert list(answers) == ["web-1", "web-2"]
    for name, answer in answers.items():
        assert (answer.stdout, answer.stderr) == (f"{name}\n".encode(), b"oops\n")
        assert (answer.code, answer.ok, answer.error) == (3, False, None)


def test_a_guest_with_another_host_key_is_not_believed(guests):
    answer = run(guests, "true", "web-4")["web-4"]
    assert isinstance(answer.error, HostCommandError)
    assert "Host key verification failed" in str(answer.error)
    assert answer.code is None


def test_known_hosts_are_never_written(guests):
    before = [path.read_bytes() for path in guests.folder.glob("*/known_hosts")]
    run(guests, "true")
    assert [path.read_bytes() for path in guests.folder.glob("*/known_hosts")] == before


def test_nobody_home_keeps_nobody_waiting(guests):
    accesses = [guests.access("web-1"), guests.access("web-2", address="127.0.0.99")]
    first, second = remote.run(accesses, "echo hi", timeout=30)
    assert first.ok
    assert "Connection refused" in str(second.error)


@pytest.mark.parametrize(("seconds", "login"), [(0.5, 20), (60, 20), (600, 100), (86400, 120)])
def test_a_login_may_take_its_part_of_the_time(seconds, login):
    """Guests on a busy host answer late: who has given more time has it for the login too."""
    assert ssh.unattended(seconds)["ConnectTimeout"] == str(login)


def test_the_slow_are_cut_off_with_what_they_said(guests):
    started = time.monotonic()
    command = 'echo begun; [ "$VMCLONER_GUEST" = web-1 ] || exec sleep 60'
    answers = run(guests, command, "web-1", "web-2", timeout=8)
    assert time.monotonic() - started < 50
    assert answers["web-1"].ok
    assert isinstance(answers["web-2"].error, DeadlineExceeded)
    assert answers["web-2"].stdout == b"begun\n"


def test_an_endless_flood_is_bounded(guests, monkeypatch):
    monkeypatch.setattr(remote, "MAX_OUTPUT", 100_000)
    answer = run(guests, "head -c 30000000 /dev/zero; echo done >&2", "web-1")["web-1"]
    assert len(answer.stdout) == 100_000
    assert answer.truncated
    assert answer.ok
    assert answer.stderr == b"done\n"


def test_bytes_and_placeholders_come_through_as_they_are(guests):
    command = r"printf 'a\0b\r\n\377 %%h %%hosts %%n'"
    answer = run(guests, command, "web-1")["web-1"]
    assert answer.stdout == b"a\0b\r\n\xff %h %hosts %n"


def test_standard_input_is_empty(guests):
    assert run(guests, "cat; echo end", "web-1")["web-1"].stdout == b"end\n"


def test_so_many_at_once_and_no_more(guests):
    folder = guests.folder / "at once"
    folder.mkdir()
    command = f"cd '{folder}'; : > $VMCLONER_GUEST; ls | wc -l; sleep 0.3; rm $VMCLONER_GUEST"
    answers = run(guests, command, "web-1", "web-2", "web-3", jobs=1)
    assert {answer.stdout.strip() for answer in answers.values()} == {b"1"}


def test_from_several_threads_at_once(guests):
    seen = {}

    def work(name):
        seen[name] = run(guests, "echo $VMCLONER_GUEST", name)[name].stdout

    threads = [threading.Thread(target=work, args=(f"web-{n}",)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {f"web-{n}": f"web-{n}\n".encode() for n in (1, 2, 3)}


def test_what_is_the_same_is_gathered():
    answers = [
        remote.Answer(name=f"web-{n}", code=0, stdout=b"a\nb\n" if n != 2 else b"c\n")
        for n in range(1, 5)
    ]
    folded = remote.fold(answers, lambda answer: answer.stdout)
    assert sorted(folded) == [(b"a\nb", "web-[1,3-4]"), (b"c", "web-2")]


def test_the_ssh_configuration_works_by_itself(guests):
    config = guests.folder / "ssh_config"
    config.write_text(ssh.config(guests.accesses()))
    argv = ["ssh", "-F", str(config), "-oBatchMode=yes", "web-2", "echo $VMCLONER_GUEST"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "web-2\n"


def test_the_users_own_configuration_has_no_say(guests, monkeypatch, tmp_path):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  ProxyCommand false\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(guests, "true", "web-1")["web-1"].ok


def test_paths_are_quoted_as_ssh_reads_them(guests):
    odd = guests.folder / """odd %h "name" 'n' $HOME"""
    odd.mkdir()
    (odd / "known_hosts").write_bytes((guests.folder / "web-1" / "known_hosts").read_bytes())
    os.link(guests.key, odd / "key")
    access = guests.access("web-1", known_hosts=odd / "known_hosts", key=odd / "key")
    (answer,) = remote.run([access], "true", timeout=30)
    assert answer.ok, answer


def test_a_path_that_ssh_would_fill_in(guests):
    access = guests.access("web-1", known_hosts=guests.folder / "${HOME}")
    with pytest.raises(InvalidRequest, match="expand"):
        remote.run([access], "true", timeout=1)


def test_nobody_to_ask():
    assert remote.run([], "true", timeout=1) == ()
