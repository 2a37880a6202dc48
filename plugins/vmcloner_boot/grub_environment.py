"""The variables of a GRUB script, and the block of them that GRUB keeps in a file."""

from __future__ import annotations

import re

import attrs

from vmcloner_boot.disk_image import Unreadable

MAX_VARIABLES = 1000
_SIGNATURE = "# GRUB Environment Block\n"


@attrs.define
class _Context:
    variables: dict[str, str] = attrs.field(factory=dict)
    exported: set[str] = attrs.field(factory=set)


class Environment:
    """Variables in contexts: a submenu and another configuration file have one of their own.

    A new context begins with the variables that are exported; what is set in it ends with it.
    """

    def __init__(self) -> None:
        self._contexts = [_Context()]

    def get(self, name: str) -> str:
        """Return a variable's value, "" where it isn't set."""
        return self._contexts[-1].variables.get(name, "")

    def put(self, name: str, value: str) -> None:
        """Set a variable.

        :raises Unreadable: there are too many.
        """
        variables = self._contexts[-1].variables
        if name == "root":
            value = value.removeprefix("(").removesuffix(")")
        variables[name] = value
        if len(variables) > MAX_VARIABLES:
            raise Unreadable(f"a GRUB script sets more than {MAX_VARIABLES} variables")

    def unset(self, name: str) -> None:
        """Remove a variable; nothing happens where there is none."""
        self._contexts[-1].variables.pop(name, None)

    def export(self, name: str) -> None:
        """Let further contexts see a variable."""
        self.put(name, self.get(name))
        self._contexts[-1].exported.add(name)

    def open(self) -> None:
        """Open a context."""
        last = self._contexts[-1]
        exported = {name for name in last.exported if name in last.variables}
        self._contexts.append(
            _Context({name: last.variables[name] for name in exported}, set(exported))
        )

    def close(self) -> None:
        """Close the last context."""
        self._contexts.pop()


def environment_block(text: str) -> dict[str, str] | None:
    """Return the variables in a file as ``grub-editenv`` makes it, None where it is no such file.

    What counts for one boot alone is left out: GRUB itself removes it from the file as it boots. A
    reader that can't write would boot it for ever.
    """
    if not text.startswith(_SIGNATURE):
        return None
    found: dict[str, str] = {}
    body = text[len(_SIGNATURE) :]
    for line in re.findall(r"(?:\\[\s\S]|[^\\\n])+", body)[:MAX_VARIABLES]:
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = re.sub(r"\\([\s\S])", r"\1", value)
    found.pop("next_entry", None)
    if previous := found.pop("prev_saved_entry", ""):
        found["saved_entry"] = previous
    return found
