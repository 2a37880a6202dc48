"""Whether the host's packet filter drops what it forwards for guests.

Docker sets the policy of iptables' chain FORWARD to DROP. A packet that one table accepts is still
dropped by another, so guests on a bridge without an accepting rule in each such chain reach nothing
outside. libvirt adds such rules for its networks where it uses iptables itself, until something
reloads the rules.

https://docs.docker.com/engine/network/packet-filtering-firewalls/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vmcloner_core.errors import VmclonerError
from vmcloner_core.process import CommandRunner


def lost(bridge: str) -> str:
    """Return a line about a bridge whose forwarded packets are dropped."""
    return (
        f"this host drops packets that it forwards for {bridge}: guests on it reach nothing outside"
    )


def mend(bridge: str) -> str:
    """Return the command that lets a bridge's guests out."""
    return " && ".join(f"iptables -I FORWARD {side} {bridge} -j ACCEPT" for side in ("-i", "-o"))


def dropped(runner: CommandRunner, bridges: Iterable[str]) -> tuple[str, ...]:
    """Return those bridges whose forwarded packets are dropped; none where that can't be known."""
    chains = list(_dropping(runner))
    return tuple(name for name in bridges if any(not lets(name) for lets in chains))


def drops(runner: CommandRunner) -> bool:
    """Tell whether a chain drops what no rule of it accepts."""
    return any(True for _ in _dropping(runner))


class _Chain:
    """A chain that drops what is forwarded, with the interfaces that its rules accept."""

    def __init__(self, accepted: Iterable[str | None]) -> None:
        self._accepted = frozenset(accepted)

    def __call__(self, bridge: str) -> bool:
        """Tell whether a rule accepts the packets of a bridge."""
        if None in self._accepted or bridge in self._accepted:
            return True
        prefixes = (name[:-1] for name in self._accepted if name and name[-1] in "+*")
        return any(bridge.startswith(prefix) for prefix in prefixes)


def _dropping(runner: CommandRunner) -> Iterator[_Chain]:
    """Yield the chains that drop. Reading them takes root."""
    seen = False
    if runner.which("nft") is not None:
        listed = _output(runner, ["nft", "--json", "list", "ruleset"])
        yield from _nft(listed)
        seen = "FORWARD" in listed
    if not seen and runner.which("iptables") is not None:
        yield from _iptables(_output(runner, ["iptables", "-S"]))


def _output(runner: CommandRunner, argv: Sequence[str]) -> str:
    try:
        return runner.run(argv, timeout=20).stdout.decode(errors="replace")
    except VmclonerError:
        return ""  # no permission, or no such tables


def _iptables(rules: str) -> Iterator[_Chain]:
    """Read the output of ``iptables -S``."""
    lines = [line.split() for line in rules.splitlines()]
    if ["-P", "FORWARD", "DROP"] not in lines:
        return
    yield _Chain(_accepting(lines))


def _accepting(lines: Sequence[Sequence[str]]) -> Iterator[str | None]:
    """Yield the incoming interfaces whose packets are accepted, None for all."""
    reached, known = {"FORWARD"}, -1
    while len(reached) > known:  # what FORWARD jumps to, and what that jumps to
        known = len(reached)
        reached |= {_after(w, "-j") for w in lines if w[:1] == ["-A"] and w[1] in reached}
    for words in lines:
        if words[:1] != ["-A"] or words[1] not in reached or _after(words, "-j") != "ACCEPT":
            continue
        if len(words) == 4:  # -A CHAIN -j ACCEPT
            yield None
        elif _plain(words, "-i") and not _plain(words, "-o") and not _SOME & set(words):
            yield _after(words, "-i")


_SOME = {"-p", "--ctstate", "--dport", "--sport", "--state"}
"""Options of rules that accept only some of an interface's packets."""


def _plain(words: Sequence[str], option: str) -> bool:
    return option in words and words[words.index(option) - 1] != "!"


def _after(words: Sequence[str], option: str) -> str:
    place = words.index(option) + 1 if option in words else len(words)
    return words[place] if place < len(words) else ""


def _nft(listed: str) -> Iterator[_Chain]:
    """Read the output of ``nft --json list ruleset`` (libnftables-json(5))."""
    try:
        objects = json.loads(listed or "{}").get("nftables", [])
        chains = [entry["chain"] for entry in objects if "chain" in entry]
        rules = [entry["rule"] for entry in objects if "rule" in entry]
        for chain in chains:
            drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
            if drops and chain.get("family") in ("ip", "inet"):
                table = [rule for rule in rules if _table(rule) == _table(chain)]
                yield _Chain(_nft_accepting(table, chain["name"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # a newer format: nothing is known


def _table(entry: Mapping[str, Any]) -> tuple[object, object]:
    return entry.get("family"), entry.get("table")


def _nft_accepting(rules: Sequence[Mapping[str, Any]], first: str) -> Iterator[str | None]:
    reached, known = {first}, -1
    while len(reached) > known:
        known = len(reached)
        for rule in rules:
            if rule.get("chain") in reached:
                for statement in rule.get("expr", []):
                    target = statement.get("jump") or statement.get("goto") or {}
                    reached |= {target["target"]} if "target" in target else set()
    for rule in rules:
        expressions = rule.get("expr", [])
        if rule.get("chain") not in reached or not any("accept" in e for e in expressions):
            continue
        matches = [e["match"] for e in expressions if "match" in e]
        if not matches and not any("xt" in e for e in expressions):
            yield None
        named = {_key(match): match["right"] for match in matches if match.get("op") == "=="}
        # "ct" and "l4proto" are matches of some of an interface's packets, "oifname" of some ways.
        if not named.keys() & {"oifname", "oif", "ct", "l4proto"}:
            yield from _names(named.get("iifname", named.get("iif")))


def _key(match: Mapping[str, Any]) -> str:
    left = match["left"]
    return "ct" if "ct" in left else str(left.get("meta", {}).get("key", ""))


def _names(right: Any) -> Iterator[str]:
    if isinstance(right, str):
        yield right
    elif isinstance(right, dict):
        yield from (name for name in right.get("set", []) if isinstance(name, str))
