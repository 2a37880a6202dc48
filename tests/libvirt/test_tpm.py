"""Hosts on which swtpm can't make TPMs: found before anything is made, and named when it fails."""

import os
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, HostCommandError
from vmcloner_core.model import Outcome
from vmcloner_libvirt import firmware, needs, tpm
from vmcloner_libvirt.metadata import parse

NOBODY = 65534
URI = "qemu:///system"
LOG = """\
Starting vTPM manufacturing as tss:tss @ Sun 29 Nov 2026 02:10:44 PM UTC
Successfully authored TPM state.
Ending vTPM manufacturing @ Sun 29 Nov 2026 02:10:44 PM UTC
Starting vTPM manufacturing as tss:tss @ Sun 29 Nov 2026 02:30:44 PM UTC
Successfully created RSA 2048 EK with handle 0x81010001.
  Invoking /usr/bin/swtpm_localca --type ek --ek a067af164e023e118a73f87f2678009474d37164b474
Need read/write rights on /var/lib/swtpm-localca/.lock.swtpm-localca for user tss.
swtpm_localca exit with status 1:\x20
An error occurred. Authoring the TPM state failed.
Ending vTPM manufacturing @ Sun 29 Nov 2026 02:30:45 PM UTC
"""
FAILED = (
    "web-1: internal error: Could not run '/usr/bin/swtpm_setup'. exitstatus: 1; Check error log "
    "'/var/log/swtpm/libvirt/qemu/web-1-swtpm.log' for details. [VIR_ERR_INTERNAL_ERROR]"
)
FEATURES = """
<domainCapabilities><devices><tpm>
  <enum name="backendModel"><value>emulator</value></enum>
</tpm></devices></domainCapabilities>
"""
DOMAIN = """
<domain><uuid>b6b8b2b1-7f6d-4b9a-9d43-0c5e6e1f4a01</uuid>
  <devices><tpm><backend type="emulator"/></tpm></devices></domain>
"""


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """The keys' folder of a host whose swtpm is run as ``nobody``, and whose daemon began later."""
    folder, conf, pid = tmp_path / "keys", tmp_path / "qemu.conf", tmp_path / "pid"
    folder.mkdir()
    conf.write_text('# swtpm_user = "tss"\nswtpm_user = "+65534"\n')
    for name, mode in ((".lock.swtpm-localca", 0o755), ("certserial", 0o644), ("key.pem", 0o644)):
        (folder / name).touch()
        (folder / name).chmod(mode)
        os.utime(folder / name, (10**9, 10**9))
    pid.touch()
    for name, value in (("KEYS", folder), ("QEMU_CONF", conf), ("DAEMONS", (pid,))):
        monkeypatch.setattr(tpm, name, value)
    monkeypatch.setattr(firmware, "SYSTEM", tmp_path / "var")
    return folder


def give(folder):
    """Give all files to the user."""
    for file in folder.iterdir():
        os.chown(file, NOBODY, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_keys_that_root_made_are_found_before_anything_is_made(keys):
    root, features = parse(DOMAIN), parse(FEATURES)
    with pytest.raises(BackendError) as caught:
        needs._check_tpm(root, features, "template x", URI)
    assert "can't be made: user nobody, whom swtpm runs as" in caught.value.message
    assert str(keys / ".lock.swtpm-localca") in caught.value.message
    assert caught.value.hint == f"chown -R nobody {keys}"
    needs._check_tpm(root, features, "template x", "qemu:///session")
    made = firmware.tpm(root.findtext("uuid"), URI)
    made.mkdir(parents=True)
    needs._check_tpm(root, features, "web-1", URI)  # it has its TPM already
    made.rmdir()
    give(keys)
    needs._check_tpm(root, features, "template x", URI)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_each_file_needs_its_own_access(keys):
    give(keys)
    os.chown(keys / "key.pem", 0, 0)
    assert tpm.closed_keys() is None
    (keys / "key.pem").chmod(0o600)
    assert str(keys / "key.pem") in tpm.closed_keys()[0]
    (keys / "key.pem").unlink()
    (keys / "link").symlink_to("/etc/shadow")
    assert tpm.closed_keys() is None
    keys.chmod(0o700)
    assert tpm.closed_keys()[0].endswith(f"no access to {keys}")


def test_a_daemon_that_runs_swtpm_as_root_works_until_its_next_start(keys):
    for file in keys.iterdir():
        os.utime(file, (2**33, 2**33))
    assert tpm.closed_keys() is None


def test_what_can_not_be_seen_is_no_failure(keys, monkeypatch):
    monkeypatch.setattr(tpm, "DAEMONS", ())
    assert tpm.closed_keys() is None
    monkeypatch.setattr(tpm, "KEYS", keys / "absent")
    assert tpm.closed_keys(2**33) is None


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setattr(firmware, "SYSTEM", tmp_path / "var")
    monkeypatch.setattr(tpm, "KEYS", tmp_path / "absent")
    file = firmware.tpm_log("web-1", URI)
    file.parent.mkdir(parents=True)
    return file


def failed():
    return Outcome(key="web-1", error=HostCommandError(FAILED))


def test_a_start_says_why_swtpm_failed(log):
    log.write_text(LOG)
    error = tpm.explained(failed(), URI).error
    assert error.message == (
        "web-1: its TPM failed: Need read/write rights on "
        "/var/lib/swtpm-localca/.lock.swtpm-localca for user tss; swtpm_localca exit with status 1;"
        " An error occurred. Authoring the TPM state failed"
    )
    assert error.hint == f"see {log}"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_start_says_the_way_out(log, keys):
    log.write_text(LOG)
    assert tpm.explained(failed(), URI).error.hint == f"chown -R nobody {keys}"


def test_a_log_is_read_within_bounds_and_shown_safely(log):
    log.write_text("x" * 10**6 + f"\nStarting vTPM\n\x1b[31m{'y' * 10**4}\n")
    message = tpm.explained(failed(), URI).error.message
    assert len(message) < 400
    assert "\x1b" not in message


@pytest.mark.parametrize(
    "make", [Path.touch, os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")]
)
def test_without_a_log_the_error_stays(log, make):
    make(log)
    assert tpm.explained(failed(), URI).error.message == FAILED
    other = Outcome(key="web-1", error=HostCommandError("web-1: no room"))
    assert tpm.explained(other, URI) is other
