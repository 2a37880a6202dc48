"""Edit a volume group's metadata: queue a batch for its thin pool, settle it, or take it back.

Pure functions on the tree. They change the text as LVM does (lvm2's ``lib/metadata/thin_manip.c``,
``lib/format_text/export.c``): a thin volume is written together with a ``message`` in its pool,
which is to be sent to the kernel. The pool's ``transaction_id`` is the one that the kernel will
have afterwards. LVM does that for one volume at a time; here it is done for many, with one new id.
"""

from __future__ import annotations

import functools
import itertools
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import attrs

from vmcloner_core.errors import HostCommandError, NotEnoughResources, NotFound
from vmcloner_lvm.metadata import Section, Setting, Value, setting
from vmcloner_lvm.volumegroup import ThinPool, VolumeGroup, is_message, strings

MAX_DEVICE_ID = 2**24 - 1
"""dm-thin's device ids have 24 bits."""
BATCH = "vmcloner-batch-"
"""Tag of a pool while messages of ours are pending, followed by their transaction id."""
_LETTERS = (string.digits + string.ascii_letters).encode()
_ALPHABET = bytes(_LETTERS[byte % len(_LETTERS)] for byte in range(256))
_UUID = (0, 6, 10, 14, 18, 22, 26, 32)
"""Boundaries of the groups in a UUID."""


@attrs.frozen(kw_only=True)
class NewVolume:
    """A thin volume to make.

    :param size: bytes, whole extents.
    :param origin: the volume to snapshot; None for an empty volume that begins with ``head``.
    """

    name: str
    size: int
    tags: tuple[str, ...]
    origin: str | None = None
    head: bytes = b""


def queue(
    group: VolumeGroup,
    pool: str,
    *,
    create: Sequence[NewVolume] = (),
    delete: Iterable[str] = (),
    created: tuple[str, int] = ("vmcloner", 0),
) -> VolumeGroup:
    """Return the group with volumes added and removed, and with their messages queued.

    :param created: host and time (seconds since 1970) to store in new volumes.
    :raises NotEnoughResources: the pool has no device id left.
    """
    gone = {name: group.thin[name] for name in delete}
    ids = _free_ids(group, pool, len(create))
    transaction = _pool(group, pool).transaction_id
    spelled = functools.cache(setting)  # most settings are the same in all volumes
    made = [_section(spelled, group, pool, new, next(ids), transaction, created) for new in create]
    messages = [setting("create", new.name) for new in create]
    messages += [setting("delete", volume.device_id) for volume in gone.values()]
    kept = _without(group, gone)
    end = _visible(kept)
    volumes = [*kept[:end], *made, *kept[end:]]
    return _with_pool(group, pool, volumes, messages, transaction + 1)


def settle(group: VolumeGroup, pool: str, transaction_id: int | None = None) -> VolumeGroup:
    """Return the group without messages for the pool.

    :param transaction_id: that of the kernel, if it differs from that in the metadata.
    """
    if transaction_id is None:
        transaction_id = _pool(group, pool).transaction_id
    return _with_pool(group, pool, _volumes(group).items, (), transaction_id)


def take_back(group: VolumeGroup, pool: str, names: Collection[str]) -> VolumeGroup:
    """Return the group without some of the volumes that are queued to be made."""
    left = _pool(group, pool)
    messages = [setting("create", each) for each in left.messages.creates if each not in names]
    messages += [setting("delete", each) for each in left.messages.deletes]
    return _with_pool(group, pool, _without(group, names), messages, left.transaction_id)


def numbered(group: VolumeGroup) -> VolumeGroup:
    """Return the group with the next sequence number, which it has when LVM has written it.

    The number tells texts apart after a crash that left different ones on different disks.
    """
    number = group.values.get("seqno")
    if not isinstance(number, int):
        raise HostCommandError(f"LVM metadata of {group.name}: no number seqno")
    return _with_section(group, group.section.updated({"seqno": number + 1}))


def _pool(group: VolumeGroup, name: str) -> ThinPool:
    pool = group.pool(name)
    if pool is None:
        raise NotFound(f"{group.name}/{name} is not a thin pool")
    return pool


def _volumes(group: VolumeGroup) -> Section:
    volumes = group.section.section("logical_volumes")
    assert volumes is not None  # noqa: S101 - it holds the pool
    return volumes


def _without(group: VolumeGroup, names: Iterable[str]) -> list[Setting | Section]:
    """Return the items of the logical volumes without some, which are no origins any more."""
    gone = frozenset(names)
    if not gone:
        return list(_volumes(group).items)
    orphans = {each.name for each in group.thin.values() if each.origin in gone}
    return [
        _orphaned(item) if item.key in orphans and isinstance(item, Section) else item
        for item in _volumes(group).items
        if item.key not in gone
    ]


def _visible(items: Sequence[Setting | Section]) -> int:
    """Return the number of items before the hidden volumes, which LVM writes last."""
    end = len(items)
    while end and isinstance(last := items[end - 1], Section):
        if "VISIBLE" in strings(last.values(), "status"):
            break
        end -= 1
    return end


def _orphaned(volume: Section) -> Section:
    return volume.replaced(
        item.replaced(each for each in item.items if each.key != "origin")
        if isinstance(item, Section)
        else item
        for item in volume.items
    )


def _with_pool(
    group: VolumeGroup,
    pool: str,
    volumes: Iterable[Setting | Section],
    messages: Sequence[Setting],
    transaction_id: int,
) -> VolumeGroup:
    """Return the group with these logical volumes, and these messages in its pool."""

    def changed(volume: Setting | Section) -> Setting | Section:
        if volume.key != pool or not isinstance(volume, Section):
            return volume
        segments = volume.replaced(
            _with_messages(item, messages, transaction_id)
            if isinstance(item, Section) and item.key == "segment1"
            else item
            for item in volume.items
        )
        return _marked(segments, transaction_id if messages else None)

    logical = _volumes(group).replaced(map(changed, volumes))
    section = group.section.replaced(
        logical if item.key == "logical_volumes" else item for item in group.section.items
    )
    return _with_section(group, section)


def _with_section(group: VolumeGroup, section: Section) -> VolumeGroup:
    tree = group.tree.replaced(
        section if isinstance(item, Section) else item for item in group.tree.items
    )
    return VolumeGroup(tree, group.version)


def _marked(pool: Section, batch: int | None) -> Section:
    """Return a pool's section with the tag of a pending batch, or without one."""
    found = strings(pool.values(), "tags")
    tags = tuple(tag for tag in found if not tag.startswith(BATCH))
    if batch is not None:
        tags += (f"{BATCH}{batch}",)
    if tags == found:
        return pool
    if tags:
        return pool.updated({"tags": tags})
    return pool.replaced(item for item in pool.items if item.key != "tags")


def _with_messages(segment: Section, messages: Sequence[Setting], transaction_id: int) -> Section:
    segment = segment.updated({"transaction_id": transaction_id})
    kept = [item for item in segment.items if not is_message(item.key)]
    queued = [Section(f"message{n}", (each,)) for n, each in enumerate(messages, 1)]
    return segment.replaced([*kept, *queued])


def _section(
    spelled: Callable[[str, Value], Setting],
    group: VolumeGroup,
    pool: str,
    new: NewVolume,
    device_id: int,
    transaction_id: int,
    created: tuple[str, int],
) -> Section:
    """Return the section of a new thin volume that is not activated at boot."""
    thin: dict[str, Value] = {
        "start_extent": 0,
        "extent_count": new.size // group.extent,
        "type": "thin",
        "thin_pool": pool,
        "transaction_id": transaction_id,
        "device_id": device_id,
    }
    if new.origin is not None:
        thin["origin"] = new.origin
    volume: dict[str, Value] = {
        "id": new_uuid(),
        "status": ("READ", "WRITE", "VISIBLE"),
        "flags": ("ACTIVATION_SKIP",),
        "tags": new.tags,
        "creation_time": created[1],
        "creation_host": created[0],
        "segment_count": 1,
    }
    segment = Section("segment1", tuple(itertools.starmap(spelled, thin.items())))
    return Section(new.name, (*itertools.starmap(spelled, volume.items()), segment))


def new_uuid() -> str:
    """Return a new identifier in LVM's format (lvm2's ``lib/uuid/uuid.c``)."""
    letters = secrets.token_bytes(_UUID[-1]).translate(_ALPHABET).decode()
    return "-".join(letters[start:end] for start, end in itertools.pairwise(_UUID))


def _free_ids(group: VolumeGroup, pool: str, count: int) -> Iterator[int]:
    """Return free device ids of a pool: after the last one, or else any that are free."""
    used = {each.device_id for each in group.thin.values() if each.pool == pool}
    used.update(_pool(group, pool).messages.deletes)
    if len(used) + count > MAX_DEVICE_ID:
        raise NotEnoughResources(f"{group.name}/{pool}: no device id is left in the pool")
    last = max(used, default=0)
    return iter(
        [*range(last + 1, min(last + count, MAX_DEVICE_ID) + 1)]
        if last + count <= MAX_DEVICE_ID
        else [each for each in range(1, MAX_DEVICE_ID + 1) if each not in used][:count]
    )
