"""Check that clones are different machines: collect facts from each, and find shared values.

A POSIX shell script collects the facts in one login to each guest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

import attrs

from vmcloner_core.errors import PartialFailure, VmclonerError, WrongState
from vmcloner_core.names import fold
from vmcloner_core.remote import Answer
from vmcloner_core.units import counted

_SCRIPT = r"""
say() { [ -z "$2" ] || printf 'vmcloner-fact %s %s\n' "$1" "$2"; }
PATH=$PATH:/usr/sbin:/sbin
say hostname "$(uname -n)"
say machine_id "$(cat /etc/machine-id 2>/dev/null)"
for file in /etc/ssh/ssh_host_*_key.pub; do
    [ ! -r "$file" ] || say host_key "$(cut -d ' ' -f 1,2 "$file")"
done
for card in /sys/class/net/*; do
    [ -e "$card/device" ] || continue
    say mac "$(cat "$card/address")"
    for address in $(ip -o addr show dev "${card##*/}" scope global | tr -s ' ' | cut -d ' ' -f 4)
    do say address "${address%/*}"; done
done
for lease in /run/systemd/netif/leases/*; do
    [ ! -r "$lease" ] || say client_id "$(sed -n 's/^CLIENTID=//p' "$lease")"
done
for lease in /var/lib/dhcp/*.leases /var/lib/dhclient/*.lease*; do
    [ ! -r "$lease" ] ||
        say client_id "$(sed -n 's/.*dhcp-client-identifier \(.*\);/\1/p' "$lease" | tail -n 1)"
done
say uuid "$(cat /sys/class/dmi/id/product_uuid /sys/hypervisor/uuid 2>/dev/null | head -n 1)"
modprobe -q qemu_fw_cfg 2>/dev/null
say generation_id "$(od -An -v -tx1 -j40 -N16 \
    /sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw 2>/dev/null | tr -d ' \n')"
for seed in /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/seedrng/seed.*; do
    [ ! -s "$seed" ] || [ ! -r "$seed" ] || say random_seed "$(sha256sum <"$seed" | cut -c 1-32)"
done
say end end
"""
# The generation id: docs/specs/vmgenid.txt in QEMU's source; the GUID is at offset 40 in the blob.

SCRIPT = (
    f"script={shlex.quote(_SCRIPT)}; "
    'if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then sudo -n sh -c "$script"; '
    'else sh -c "$script"; fi'
)
"""The command for each clone. Some facts need root: it uses sudo if no password is needed."""

FACTS: Mapping[str, bool] = {
    "hostname": True,
    "machine_id": True,
    "host_key": True,
    "mac": True,
    "address": True,
    "client_id": False,
    "uuid": False,
    "generation_id": False,
    "random_seed": False,
}
"""The facts, and whether every machine has them: client ids need DHCP, generation ids QEMU, and a
random seed (a hash of it) an init that stores one for the next boot.
"""
MAX_VALUES = 64
MAX_VALUE = 1024
"""Limits for one fact of one clone: the output of a guest is hostile input."""
_LINE = re.compile(rb"vmcloner-fact ([a-z_]+) ([ -~]+)")

Facts = Mapping[str, tuple[str, ...]]


@attrs.frozen(kw_only=True)
class Verdict:
    """The result for one fact.

    :param read: how many clones have it. :param distinct: the number of different values.
    :param missing: clones that should have it, but do not.
    :param shared: (value, clones) for each value that several clones have.
    """

    fact: str
    read: int
    distinct: int
    missing: tuple[str, ...] = ()
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether this fact confirms that the clones are different machines."""
        return not self.missing and not self.shared


@attrs.frozen(kw_only=True)
class Report:
    """The result of an audit. ``unread``: clones that could not be queried, with the reasons."""

    clones: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    unread: Mapping[str, VmclonerError]

    def check(self) -> None:
        """Check that all clones are different machines.

        :raises PartialFailure: they are not; with the collisions and the clones that could not be
            queried.
        """
        failures = [*self.unread.items()]
        for verdict in self.verdicts:
            for value, clones in verdict.shared:
                error = WrongState(f"{fold(clones)} have one {verdict.fact}: {value}")
                failures += [(clone, error) for clone in clones]
            for clone in verdict.missing:
                failures.append((clone, WrongState(f"{clone} has no {verdict.fact}")))
        if failures:
            count = len({name for name, _ in failures})
            raise PartialFailure(
                f"audit: {count} of {counted(len(self.clones), 'clone')} not proven unique",
                failures=failures,
            )


def facts_of(answer: Answer) -> Facts:
    """Return the facts in a clone's answer.

    :raises VmclonerError: it could not be reached, or its answer is incomplete.
    """
    if answer.error is not None:
        raise answer.error
    facts: dict[str, list[str]] = {}
    ended = False
    for line in answer.stdout.splitlines():
        match = _LINE.fullmatch(line[: MAX_VALUE + 64].strip())
        if match is None:
            continue
        fact, value = match[1].decode(), match[2].decode()[:MAX_VALUE].strip()
        ended = ended or fact == "end"
        values = facts.setdefault(fact, [])
        if value not in values and len(values) < MAX_VALUES:
            values.append(value)
    if not ended:
        said = answer.stderr.decode(errors="replace").strip().splitlines()
        raise WrongState(
            f"{answer.name} didn't answer the audit" + (f": {said[-1][:200]}" if said else ""),
            hint="the guest needs a POSIX shell",
        )
    return {fact: tuple(values) for fact, values in facts.items()}


def judge(answers: Sequence[Answer]) -> Report:
    """Evaluate the answers to :data:`SCRIPT`."""
    read: dict[str, Facts] = {}
    unread: dict[str, VmclonerError] = {}
    for answer in answers:
        try:
            read[answer.name] = facts_of(answer)
        except VmclonerError as error:
            unread[answer.name] = error
    return Report(
        clones=tuple(answer.name for answer in answers),
        verdicts=tuple(_verdict(fact, read) for fact in FACTS),
        unread=unread,
    )


def _verdict(fact: str, read: Mapping[str, Facts]) -> Verdict:
    holders: dict[str, list[str]] = {}
    for name, facts in read.items():
        for value in facts.get(fact, ()):
            holders.setdefault(value, []).append(name)
    without = tuple(name for name, facts in read.items() if not facts.get(fact))
    return Verdict(
        fact=fact,
        read=len(read) - len(without),
        distinct=len(holders),
        missing=without if FACTS[fact] else (),
        shared=tuple((value, tuple(names)) for value, names in holders.items() if len(names) > 1),
    )
