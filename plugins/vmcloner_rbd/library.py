"""librados and librbd, loaded by ctypes: they work from any interpreter, unlike Ceph's modules.

The functions are declared in librados.h and librbd.h. Those that return an int return ``-errno``
where they fail; :func:`check` makes that an OSError. All of them may be called from many threads,
and ctypes releases Python's lock meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint64
from ctypes import c_void_p as ptr

from vmcloner_core.errors import BackendError

RADOS, RBD = ("librados.so.2",), ("librbd.so.2", "librbd.so.1")
SIZE_P, INT_P, PTR_P, TEXT_P = POINTER(c_size_t), POINTER(c_int), POINTER(ptr), POINTER(c_char_p)
SIZES, TEXTS = POINTER(c_size_t), POINTER(c_char_p)


class TimeVal(ctypes.Structure):
    """``struct timeval``."""

    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


class ImageSpec(ctypes.Structure):
    """``rbd_image_spec_t``."""

    _fields_ = (("id", c_char_p), ("name", c_char_p))


class Watcher(ctypes.Structure):
    """``rbd_image_watcher_t``."""

    _fields_ = (("address", c_char_p), ("id", c_int64), ("cookie", c_uint64))


class SnapshotInfo(ctypes.Structure):
    """``rbd_snap_info_t``."""

    _fields_ = (("id", c_uint64), ("size", c_uint64), ("name", c_char_p))


_CALLS: dict[str, tuple[object, ...]] = {
    "rados_create2": (PTR_P, c_char_p, c_char_p, c_uint64),
    "rados_conf_read_file": (ptr, c_char_p),
    "rados_conf_set": (ptr, c_char_p, c_char_p),
    "rados_connect": (ptr,),
    "rados_shutdown": (ptr,),
    "rados_cluster_fsid": (ptr, c_char_p, c_size_t),
    "rados_ioctx_create": (ptr, c_char_p, PTR_P),
    "rados_ioctx_destroy": (ptr,),
    "rados_ioctx_set_namespace": (ptr, c_char_p),
    "rados_ioctx_get_id": (ptr,),
    "rados_set_pool_full_try": (ptr,),
    "rados_mon_command": (
        ptr, TEXTS, c_size_t, c_char_p, c_size_t, PTR_P, SIZE_P, PTR_P, SIZE_P,
    ),
    "rados_buffer_free": (ptr,),
    "rados_create_read_op": (),
    "rados_release_read_op": (ptr,),
    "rados_read_op_omap_get_vals_by_keys": (ptr, TEXTS, c_size_t, PTR_P, INT_P),
    "rados_read_op_omap_get_vals2": (
        ptr, c_char_p, c_char_p, c_uint64, PTR_P, POINTER(c_uint8), INT_P,
    ),
    "rados_read_op_operate": (ptr, ptr, c_char_p, c_int),
    "rados_aio_create_completion2": (ptr, ptr, PTR_P),
    "rados_aio_read_op_operate": (ptr, ptr, ptr, c_char_p, c_int),
    "rados_aio_wait_for_complete": (ptr,),
    "rados_aio_get_return_value": (ptr,),
    "rados_aio_release": (ptr,),
    "rados_omap_get_next2": (ptr, PTR_P, PTR_P, SIZE_P, SIZE_P),
    "rados_omap_get_end": (ptr,),
    "rados_create_write_op": (),
    "rados_release_write_op": (ptr,),
    "rados_write_op_omap_set2": (ptr, TEXTS, TEXTS, SIZES, SIZES, c_size_t),
    "rados_write_op_omap_rm_keys2": (ptr, TEXTS, SIZES, c_size_t),
    "rados_write_op_operate": (ptr, ptr, c_char_p, ptr, c_int),
    "rados_lock_shared": (
        ptr, c_char_p, c_char_p, c_char_p, c_char_p, c_char_p, POINTER(TimeVal), c_uint8,
    ),
    "rados_lock_exclusive": (
        ptr, c_char_p, c_char_p, c_char_p, c_char_p, POINTER(TimeVal), c_uint8,
    ),
    "rados_unlock": (ptr, c_char_p, c_char_p, c_char_p),
    "rados_break_lock": (ptr, c_char_p, c_char_p, c_char_p, c_char_p),
    "rados_list_lockers": (
        ptr, c_char_p, c_char_p, INT_P, c_char_p, SIZE_P, c_char_p, SIZE_P, c_char_p, SIZE_P,
        c_char_p, SIZE_P,
    ),
    "rados_read": (ptr, c_char_p, c_char_p, c_size_t, c_uint64),
    "rados_remove": (ptr, c_char_p),
    "rbd_namespace_exists": (ptr, c_char_p, POINTER(c_bool)),
    "rbd_list2": (ptr, POINTER(ImageSpec), SIZE_P),
    "rbd_image_spec_list_cleanup": (POINTER(ImageSpec), c_size_t),
    "rbd_image_options_create": (PTR_P,),
    "rbd_image_options_destroy": (ptr,),
    "rbd_image_options_set_uint64": (ptr, c_int, c_uint64),
    "rbd_create4": (ptr, c_char_p, c_uint64, ptr),
    "rbd_clone3": (ptr, c_char_p, c_char_p, ptr, c_char_p, ptr),
    "rbd_remove": (ptr, c_char_p),
    "rbd_rename": (ptr, c_char_p, c_char_p),
    "rbd_trash_move": (ptr, c_char_p, c_uint64),
    "rbd_trash_remove": (ptr, c_char_p, c_bool),
    "rbd_open": (ptr, c_char_p, PTR_P, c_char_p),
    "rbd_open_by_id": (ptr, c_char_p, PTR_P, c_char_p),
    "rbd_open_read_only": (ptr, c_char_p, PTR_P, c_char_p),
    "rbd_close": (ptr,),
    "rbd_resize": (ptr, c_uint64),
    "rbd_metadata_set": (ptr, c_char_p, c_char_p),
    "rbd_snap_list": (ptr, POINTER(SnapshotInfo), INT_P),
    "rbd_snap_list_end": (POINTER(SnapshotInfo),),
    "rbd_snap_create": (ptr, c_char_p),
    "rbd_snap_remove": (ptr, c_char_p),
    "rbd_snap_protect": (ptr, c_char_p),
    "rbd_snap_unprotect": (ptr, c_char_p),
    "rbd_snap_is_protected": (ptr, c_char_p, INT_P),
    "rbd_write": (ptr, c_uint64, c_size_t, c_char_p),
    "rbd_read": (ptr, c_uint64, c_size_t, c_char_p),
    "rbd_flush": (ptr,),
    "rbd_watchers_list": (ptr, POINTER(Watcher), SIZE_P),
    "rbd_watchers_list_cleanup": (POINTER(Watcher), c_size_t),
}  # fmt: skip
_RETURNS = {
    "rados_create_read_op": ptr,
    "rados_create_write_op": ptr,
    "rados_ioctx_get_id": c_int64,
    "rados_list_lockers": c_ssize_t,
    "rbd_read": c_ssize_t,
    "rbd_write": c_ssize_t,
}
_NOTHING = {
    "rados_aio_release", "rados_buffer_free", "rados_ioctx_destroy", "rados_ioctx_set_namespace",
    "rados_omap_get_end", "rados_read_op_omap_get_vals2", "rados_read_op_omap_get_vals_by_keys",
    "rados_release_read_op", "rados_release_write_op", "rados_set_pool_full_try", "rados_shutdown",
    "rados_write_op_omap_rm_keys2", "rados_write_op_omap_set2", "rbd_image_options_destroy",
    "rbd_image_spec_list_cleanup", "rbd_snap_list_end", "rbd_watchers_list_cleanup",
}  # fmt: skip


class Library:
    """The functions of both libraries, as attributes."""

    def __init__(self) -> None:
        found = {"rados": _load(RADOS), "rbd": _load(RBD)}
        for name, arguments in _CALLS.items():
            try:
                function = getattr(found[name.partition("_")[0]], name)
            except AttributeError as error:
                raise BackendError(
                    f"Ceph's library is too old: it has no {name}",
                    hint="version 16 of librbd or later is needed",
                ) from error
            function.argtypes = arguments
            function.restype = None if name in _NOTHING else _RETURNS.get(name, c_int)
            setattr(self, name, function)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)  # all of them are set; this one is for the type checker


def _load(names: tuple[str, ...]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reason = error
    raise BackendError(
        f"Ceph's library can't be loaded: {reason}", hint="apt-get install librbd1"
    ) from reason


@functools.cache
def library() -> Library:
    """Return the libraries.

    :raises BackendError: they aren't installed, or too old.
    """
    return Library()


def check(result: int, what: str) -> int:
    """Return what a function returned.

    :raises OSError: it failed; names ``what``.
    """
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return int(result)
