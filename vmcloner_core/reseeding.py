"""Make running guests the machines that their seeds name: forks of one memory become clones.

A fork continues in the middle of its parent's life: it has the parent's name, keys and random
numbers, and no card. It becomes somebody in this order:

1. Its seed disk is plugged, with the serial :data:`SERIAL`. It holds the file :data:`FILE`.
2. :func:`reseed`: where an agent answers, it runs ``reseed.sh`` in the guest, with fresh entropy
   and the time. Where none does, something in the guest has waited for the disk, and answers with
   a line on its console: ``vmcloner-reseeded NAME``.
3. Its cards are plugged. So no packet has the parent's DHCP client id.

Plugins' public part: the file for the seed, and the script for an image.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources

from vmcloner_core.cancelling import carried, pauses
from vmcloner_core.drivers import HypervisorDriver
from vmcloner_core.errors import InvalidRequest, VmclonerError, WrongState
from vmcloner_core.model import Identity, Outcome, Template

SERIAL = "vmcloner-seed"
"""The seed disk's serial number, by which a guest knows it. At most 20 characters (virtio)."""
FILE = "vmcloner"
"""The file in a seed's root folder that a guest reads without a YAML parser."""
WAITS = "vmcloner-waits-for-seed"
"""What a guest without an agent says on its console once it waits for a seed disk."""
POLL = 1.0
"""Most seconds between looks at consoles and agents."""
ASKERS = 8
"""Agents that run the script in parallel."""
ENTROPY = 64
"""Bytes for a guest's random number generator."""
_CHUNK = 65536
_LOG = 1024**2
"""Bytes of a console's log that are searched."""
_REASON = 200


def identity_file(identity: Identity, host_key: str, host_key_public: str) -> bytes:
    """Return the file :data:`FILE`: one ``WORD VALUE`` a line, ``end`` last. It is a secret.

    ``name``, ``generation``, ``machine-id``, ``uuid``, ``user``; ``key`` (one for each authorized
    key); ``host-key`` (OpenSSH's format in base64), ``host-key-public``; ``card MAC ADDRESS/PREFIX
    GATEWAY``, with ``dhcp`` and ``-`` where there is none; ``nameserver ADDRESS``.
    """
    lines = [
        f"name {identity.hostname}",
        f"generation {identity.generation}",
        f"machine-id {identity.machine_id}",
        f"uuid {identity.uuid}",
        f"user {identity.user}",
        *(f"key {key}" for key in identity.authorized_keys),
        f"host-key {base64.b64encode(host_key.encode()).decode()}",
        f"host-key-public {host_key_public}",
        *(
            f"card {card.mac} {card.address or 'dhcp'} {_gateway(identity.gateway, card.address)}"
            for card in identity.interfaces
        ),
        *(f"nameserver {address}" for address in identity.nameservers),
        "end",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _gateway(wanted: str | None, address: str | None) -> str:
    """Return a gateway that is on a static address's network, else ``-``."""
    if wanted is None or address is None:
        return "-"
    reached = ipaddress.ip_address(wanted) in ipaddress.ip_interface(address).network
    return wanted if reached else "-"


def script() -> bytes:
    """Return the POSIX shell script that re-seeds a guest as root: ``reseed.sh``.

    It finds the seed disk by its serial, and is idempotent. The words that it takes, all optional:
    ``wait`` says :data:`WAITS` once the guest has booted, ``settle`` waits only; a port after it
    has to answer as an SSH server. In its environment, ``entropy`` is hexadecimal digits, and
    ``now`` the seconds since the epoch; without it the hardware clock counts.
    """
    return resources.files(__package__).joinpath("reseed.sh").read_bytes()


def check_template(template: Template) -> None:
    """Check that nothing of a template is lost when its clones are forks.

    :raises InvalidRequest: it has files for cloud-init, which runs once, before a fork.
    """
    for key in ("user_data", "network_config"):
        if getattr(template.identity, key) is not None:
            raise InvalidRequest(
                f"template {template.name}: identity.{key}: forks of a running guest don't get it",
                hint="create without --warm, or put it into an image by vmcloner template capture",
            )


def check(driver: HypervisorDriver, name: str, template: str, *, timeout: float) -> None:
    """Check that a running guest, a parent of forks, has booted and could be re-seeded.

    What it has written is on its disk then.

    :param timeout: seconds in which an agent has to say so.
    :raises WrongState: neither does its agent run scripts, nor does it wait for a seed.
    """
    if _heard(driver, name, WAITS) is not None:
        return
    reason = _settled(driver, name, "", timeout=timeout)
    if reason is None:
        return
    raise WrongState(
        f"template {template}: its guest can't take a new identity after a fork: {reason}",
        hint="install qemu-guest-agent in its image and set domain.agent = true, create the clones "
        "without --warm, or with --warm --identical: all are exact copies of one guest then",
    )


def check_ssh(
    driver: HypervisorDriver, name: str, template: str, port: int, *, timeout: float
) -> None:
    """Check that an SSH server answers in a running guest, which its agent asks: it has no card.

    :param timeout: seconds in which the agent has to say so.
    :raises WrongState: none answers, or there is no agent.
    """
    reason = _settled(driver, name, f" {port}", timeout=timeout)
    if reason is None:
        return
    raise WrongState(
        f"template {template}: its guest can't be reached by ssh: {reason}",
        hint=f'vmcloner template warm {template} --at ready, with ready = "running" in the '
        "template",
    )


def _settled(driver: HypervisorDriver, name: str, words: str, *, timeout: float) -> str | None:
    """Have a guest's agent settle it; returns why that failed, None if it did."""
    if driver.agents is None or not driver.agents.reported([name]):
        return "no agent in it has reported"
    try:
        driver.agents.run(name, f"set -- settle{words}\n".encode() + script(), timeout=timeout)
    except WrongState as error:
        return error.message
    return None


def reseed(
    driver: HypervisorDriver, names: Sequence[str], *, timeout: float
) -> Iterator[Outcome[None]]:
    """Make running guests with plugged seed disks who these name; keys are the domains' names.

    Idempotent: a guest that is already who its seed names is left, and is a success. One that
    failed is in any state between: the caller has to power it off.

    :param timeout: seconds for all of them.
    :raises WrongState: (in an outcome) a guest doesn't answer, or says why it failed.
    """
    deadline, looks = time.monotonic() + timeout, pauses(POLL)
    asked: dict[Future[None], str] = {}
    silent = list(dict.fromkeys(names))
    with ThreadPoolExecutor(ASKERS, thread_name_prefix="reseed") as pool:
        while silent or asked:
            for name in tuple(silent):
                if (outcome := _answer(driver, name)) is not None:
                    silent.remove(name)
                    yield outcome
            left = deadline - time.monotonic()
            for name in _reported(driver, silent):
                silent.remove(name)
                run = carried(functools.partial(_run, driver, name, max(1.0, left)))
                asked[pool.submit(run)] = name
            for future in [future for future in asked if future.done()]:
                yield _outcome(asked.pop(future), future)
            if silent and left <= 0:
                yield from (_no_answer(name, timeout) for name in silent)
                silent = []
            if silent or asked:
                next(looks)


def _reported(driver: HypervisorDriver, names: Sequence[str]) -> frozenset[str]:
    return driver.agents.reported(names) if names and driver.agents is not None else frozenset()


def _run(driver: HypervisorDriver, name: str, timeout: float) -> None:
    assert driver.agents is not None  # noqa: S101 - it has reported
    given = f"entropy={os.urandom(ENTROPY).hex()} now={time.time():.0f}\n".encode()
    driver.agents.run(name, given + script(), timeout=timeout)


def _outcome(name: str, future: Future[None]) -> Outcome[None]:
    try:
        future.result()
    except VmclonerError as error:
        return Outcome(key=name, error=error)
    return Outcome(key=name)


def _answer(driver: HypervisorDriver, name: str) -> Outcome[None] | None:
    """Return what a guest without an agent has said on its console; None if nothing yet."""
    if _heard(driver, name, "vmcloner-reseeded") is not None:
        return Outcome(key=name)
    reason = _heard(driver, name, "vmcloner-reseed-failed")
    if reason is None:
        return None
    return Outcome(key=name, error=WrongState(f"{name}: its guest couldn't be re-seeded: {reason}"))


def _no_answer(name: str, timeout: float) -> Outcome[None]:
    return Outcome(
        key=name,
        error=WrongState(
            f"{name}: its guest didn't become {name} within {timeout:g} s: no agent reported, and "
            "its console doesn't say that it has read its seed",
            hint=f"vmcloner console {name} --log",
        ),
    )


def _heard(driver: HypervisorDriver, name: str, word: str) -> str | None:
    """Return the rest of the last line on a guest's console with a word; None if there is none."""
    if driver.consoles is None:
        return None
    said, offset, before = b"", 0, -1
    with contextlib.suppress(VmclonerError):
        while offset != before and offset < _LOG:
            before = offset
            data, offset = driver.consoles.read(name, offset, _CHUNK)
            said += data
    # A prompt or an escape sequence may stand before it on its line.
    found = re.findall(rf"{word}\b ?([ -~]{{0,{_REASON}}})".encode(), said)
    return found[-1].decode("ascii").strip() if found else None
