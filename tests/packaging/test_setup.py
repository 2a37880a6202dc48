"""The set-up's scripts, and the libvirtd that they keep where there is no systemd.

That libvirtd is the real program's stand-in here, since the machine's own must not be disturbed:
what is tried is who starts it, who stops it, and what a kill leaves. It all happens in a mount
and process namespace with a /run of its own, so nothing outlives a test.
"""

import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "contrib" / "setup"
PROGRAMS = {
    # Like the real ones: it can be found while it runs, and ends when told to.
    "libvirtd": """
        [ ! -e /run/broken ] || { echo the reason >&2; exit 1; }
        [ ! -e /run/with-guest ] || (sleep 3000 & echo $! >/run/guest)
        echo $$ >/run/libvirtd
        exec sleep 1000
    """,
    "virtlogd": "exec sleep 2000",
    "virsh": "kill -0 $(cat /run/libvirtd)",
}
PROLOGUE = """
    mount -t tmpfs run /run
    mount -t tmpfs lib /var/lib
    export L="/usr/bin/python3 {setup}/libvirtd.py" PATH={programs}:$PATH
    daemons() {{
        local process
        for process in /proc/[0-9]*; do
            case $(tr '\\0' ' ' <$process/cmdline) in
                "sleep 1000 ") echo libvirtd ;;
                "sleep 2000 ") echo virtlogd ;;
                "sleep 3000 ") echo guest ;;
                *"libvirtd.py supervise ") echo supervisor ;;
            esac
        done 2>/dev/null | sort | paste -sd ' '
    }}
    without() {{
        for _ in {{1..100}}; do [[ $(daemons) != *$1* ]] && return; sleep 0.1; done
        echo "$1 stays"
    }}
"""
ALL = "libvirtd supervisor virtlogd"


@pytest.fixture
def sandbox(tmp_path):
    """Return a function that runs a bash script in a sandbox and returns the lines it printed.

    ``$L`` is libvirtd.py, ``daemons`` prints what runs, ``without WORD`` waits until WORD doesn't.
    """
    for name, script in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    prologue = PROLOGUE.format(setup=SETUP, programs=tmp_path)

    def run(script):
        done = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("bash", "-c", textwrap.dedent(prologue) + textwrap.dedent(script)),
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout.splitlines()

    return run


KEPT = (
    f"libvirtd: running, and stays running; stop it with: /usr/bin/python3 {SETUP}/libvirtd.py stop"
)
STARTING = "libvirtd: starting libvirtd (the first start probes each QEMU: about 12 s)"


def test_run_leaves_nothing(sandbox):
    out = sandbox("$L run -- bash -c 'exit 7'; echo $?; without supervisor; daemons; echo end")
    assert out == [STARTING, "libvirtd: stopped", "7", "", "end"]


def test_a_killed_run_leaves_nothing(sandbox):
    out = sandbox("""
        export -f daemons
        { $L run -- bash -c 'daemons; kill -9 $PPID'; } 2>/dev/null
        without supervisor; daemons; echo end
    """)
    assert out == [ALL, "", "end"]


def test_what_starts_stays_until_it_is_stopped(sandbox):
    out = sandbox("""
        $L start; $L start; daemons
        $L run -- true; daemons
        $L stop; without supervisor; daemons; echo end
    """)
    assert out == [STARTING, KEPT, KEPT, ALL, ALL, "libvirtd: stopped", "", "end"]


def test_two_runs_share_one_that_goes_with_the_last(sandbox):
    out = sandbox("""
        $L run -- sleep 4 2>/dev/null & first=$!
        until virsh uri 2>/dev/null; do sleep 0.1; done
        $L run -- bash -c "while [ -e /proc/$first ]; do sleep 0.1; done; sleep 1; echo second" &
        wait $first; daemons
        wait; without supervisor; daemons; echo end
    """)
    assert out == [ALL, "second", "libvirtd: stopped", "", "end"]


def test_one_that_dies_is_started_again(sandbox):
    out = sandbox("""
        $L start 2>/dev/null; sleep 2
        old=$(cat /run/libvirtd); kill -9 $old; sleep 1
        $L status; daemons; [ $old != $(cat /run/libvirtd) ]; echo $?
    """)
    assert out == [KEPT, ALL, "0"]


def test_one_that_cannot_start_says_why(sandbox):
    out = sandbox("""
        touch /run/broken; $L start; echo $?; ls /run/vmcloner-libvirtd
        without supervisor; without virtlogd; echo end
    """)
    assert "the reason" in out
    said = "libvirtd: no response; the end of its log is above"
    assert any(line.startswith(said) for line in out)
    assert [word for word in out[-5:] if word != "users"][-4:] == ["1", "log", "supervisor", "end"]


def test_guests_outlive_it_and_the_supervisor_sees_to_them(sandbox):
    """A guest that its parent lets go of falls to the supervisor, which reaps it at once."""
    out = sandbox("""
        touch /run/with-guest; $L start 2>/dev/null; $L stop; daemons
        kill $(cat /run/guest); sleep 0.2; [ -e /proc/$(cat /run/guest) ] || echo reaped
        without supervisor; daemons; echo end
    """)
    assert out == [
        "libvirtd: stopped; guests are still running, and their supervisor stays until they end",
        "guest supervisor virtlogd",
        "reaped",
        "",
        "end",
    ]


def test_a_new_start_takes_the_supervisor_that_guests_hold(sandbox):
    out = sandbox("""
        touch /run/with-guest; $L start 2>/dev/null; $L stop 2>/dev/null; rm /run/with-guest
        $L start; daemons
    """)
    assert out == [STARTING, KEPT, f"guest {ALL}"]


def test_keys_of_tpms_that_root_made_go_to_the_user_of_swtpm(sandbox):
    lines = sandbox("""
        mkdir /var/lib/swtpm-localca
        cd /var/lib/swtpm-localca
        touch .lock signkey.pem mine other
        chown nobody . mine
        ln -s /etc/hostname link
        ln other hard-link
        $L run -- stat -c '%U %n' .lock signkey.pem mine link other 2>/dev/null
        stat -c %U /etc/hostname
    """)
    assert lines == [
        "nobody .lock",
        "nobody signkey.pem",
        "nobody mine",
        "root link",
        "root other",
        "root",
    ]


def test_a_libvirtd_of_others_is_left_alone(sandbox):
    out = sandbox("""
        sleep 1000 & echo $! >/run/libvirtd
        $L start; $L run -- true; $L stop; daemons
    """)
    assert out == ["libvirtd: running"] * 2 + ["libvirtd"]


# --- the scripts --------------------------------------------------------------------------------


def test_a_second_set_up_has_nothing_to_do():
    """Packages and environment: the tests themselves run in what the first one made."""
    for script in ("packages", "venv"):
        done = subprocess.run([SETUP / script], check=True, capture_output=True, timeout=60)
        assert (done.stdout, done.stderr) == (b"", b"")


def test_without_root_and_sudo_it_takes_one_line_to_say_so(tmp_path):
    """A package is missing, and the user may not install it."""
    tree = tmp_path / "setup"
    shutil.copytree(SETUP, tree)
    (tree / "packages.txt").write_text("no-such-package\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "dirname", "dpkg-query", "env", "grep", "id"):
        (programs / name).symlink_to(shutil.which(name))
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", tree / "packages"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(programs)},
        executable=shutil.which("setpriv"),
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "set-up: needs root to install no-such-package; run make as root, or install sudo\n"
    )


def test_scripts_are_clean():
    scripts = [p for p in SETUP.iterdir() if p.is_file() and p.suffix not in {".py", ".txt"}]
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "")
