"""Which hosts words name: names, node sets and groups of the settings."""

from __future__ import annotations

from collections.abc import Sequence

from vmcloner_core.errors import InvalidRequest, NotFound, did_you_mean
from vmcloner_core.settings import Settings

MAX_HOSTS = 10_000


def named(settings: Settings, words: Sequence[str]) -> tuple[str, ...]:
    """Return the hosts that words name: names, node sets (``lab[1-3]``) and groups (``@lab``).

    :raises NotFound: there is no such group. :raises InvalidRequest: a word can't be parsed.
    """
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    found: dict[str, None] = {}
    for word in (part for each in words for part in _split(each)):
        text = word
        if word.startswith("@"):
            if word[1:] not in settings.groups:
                raise NotFound(
                    f"unknown group {word!r}", hint=did_you_mean(word[1:], list(settings.groups))
                )
            text = settings.groups[word[1:]]
        try:
            nodes = NodeSet(text, resolver=False)
            if len(nodes) > MAX_HOSTS:
                raise InvalidRequest(f"{word}: more than {MAX_HOSTS} hosts")
        except NodeSetException as error:
            raise InvalidRequest(f"not hosts: {word!r}: {error}") from error
        found |= dict.fromkeys(nodes)
    return tuple(found)


def _split(text: str) -> list[str]:
    """Return the words of a list, which are separated by commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]
