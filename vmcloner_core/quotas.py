"""Limits on what one owner may have on a host, counted over all fleets.

What is there is counted by its labels. What other runs have been admitted for, and haven't made
yet, is in a file of each fleet, ``STATE/admitted/FLEET.json``: it counts as long as a run holds
that fleet's lock. Runs are admitted one at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest, NotEnoughResources
from vmcloner_core.locks import hold_free
from vmcloner_core.model import Clone, Host
from vmcloner_core.os_errors import of_state
from vmcloner_core.plan import Plan
from vmcloner_core.settings import Limits
from vmcloner_core.trusted_files import make_folder, read_file, replacing
from vmcloner_core.units import counted, format_size

LOCK = "admission"
"""The lock of who counts, and admits a run."""


@attrs.frozen(kw_only=True)
class Share:
    """What a clone counts for: its owner, and its memory in bytes."""

    owner: str
    memory: int


Shares = Mapping[str, Share]
"""By the names of clones."""


def there(clones: Iterable[Clone]) -> dict[str, Share]:
    """Return what clones count for that are on the host."""
    return {
        clone.name: Share(
            owner=clone.labels.owner, memory=clone.domain.memory if clone.domain is not None else 0
        )
        for clone in clones
    }


def wanted(plan: Plan) -> dict[str, Share]:
    """Return what the clones will count for that a plan makes, or gives other memory."""
    found = {}
    for clone in plan.clones:
        memory = plan.sizes.memory if plan.action == "set" else None
        if clone.spec is not None and {"clone", "define"} & set(clone.steps):
            memory = clone.spec.memory
        if memory is not None:
            found[clone.name] = Share(owner=clone.labels.owner, memory=memory)
    return found


def check(plan: Plan, clones: Iterable[Clone], others: Shares, limits: Limits) -> None:
    """Check that no owner gets more by a plan than the limits allow.

    Who gets nothing more passes, whatever they have.

    :param clones: every clone on the host. :param others: what other runs will make.
    :raises NotEnoughResources: one does; names the owner, what they have, and the limit.
    """
    held, new = {**others, **there(clones)}, wanted(plan)
    for owner in sorted({share.owner for share in new.values()}):
        before = {name: share.memory for name, share in held.items() if share.owner == owner}
        after = before | {n: share.memory for n, share in new.items() if share.owner == owner}
        whose = f"vmcloner list --owner {owner} shows them; delete some"
        limit = limits.max_clones_per_owner
        if limit is not None and len(after) > max(limit, len(before)):
            raise NotEnoughResources(
                f"{owner} has {counted(len(before), 'clone')}, and {len(after) - len(before)} more "
                f"would exceed "
                f"limits.max_clones_per_owner = {limit}",
                hint=whose,
            )
        room, before_all, after_all = (
            limits.max_memory_per_owner,
            sum(before.values()),
            sum(after.values()),
        )
        if room is not None and after_all > max(room, before_all):
            raise NotEnoughResources(
                f"{owner} has {counted(len(before), 'clone')} with {format_size(before_all)} of "
                f"memory, and {format_size(after_all - before_all)} more would exceed "
                f"limits.max_memory_per_owner = {format_size(room)}",
                hint=whose,
            )


class Admissions:
    """What runs on a host have been admitted for, and haven't made yet."""

    def __init__(self, host: Host) -> None:
        self._state = host.state
        self._folder = host.admitted

    def others(self, own: Collection[str] = ()) -> dict[str, Share]:
        """Return what running runs will make.

        :param own: the fleets whose locks the caller holds: what is noted for these counts.
        """
        files = {path.stem: path for path in self._files()}
        if not files:
            return {}
        running: dict[str, Share] = {}
        locks = [f"fleet/{fleet}" for fleet in files if fleet not in own]
        with hold_free(self._state, locks) as free:
            for fleet, path in files.items():
                if f"fleet/{fleet}" not in free:
                    running |= _read(path)
        return running

    @contextlib.contextmanager
    def noted(self, plan: Plan) -> Iterator[None]:
        """Keep a plan's files until the block ends.

        :raises HostCommandError: one can't be written.
        """
        shares = wanted(plan)
        fleets: dict[Path, dict[str, object]] = {}
        for clone in plan.clones:
            if clone.name in shares:
                path = self._folder / f"{clone.labels.fleet}.json"
                fleets.setdefault(path, {})[clone.name] = attrs.asdict(shares[clone.name])
        try:
            for path, own in fleets.items():
                make_folder(self._folder)
                with replacing(path, 0o600, lasting=False) as stream:
                    stream.write(json.dumps(own).encode())
        except OSError as error:
            raise of_state(error, self._folder) from error
        try:
            yield
        finally:
            for path in fleets:
                with contextlib.suppress(OSError):  # the next run removes it
                    path.unlink()

    def _files(self) -> list[Path]:
        try:
            return [p for p in self._folder.iterdir() if not p.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise of_state(error, self._folder) from error


def _read(path: Path) -> dict[str, Share]:
    try:
        data = json.loads(read_file(path, trusted=False, limit=16 * 1024**2))
        return {
            name: Share(owner=str(share["owner"]), memory=int(share["memory"]))
            for name, share in data.items()
        }
    except (InvalidRequest, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # its run has ended just now
