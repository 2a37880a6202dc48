"""libvirt's errors as ours: by code, with the code's name and the object concerned.

Codes and domains: https://libvirt.org/html/libvirt-virterror.html
"""

from __future__ import annotations

import functools
from typing import Any

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    DeadlineExceeded,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_libvirt.binding import libvirt

_CLASSES: dict[str, type[VmclonerError]] = {
    "VIR_ERR_NO_DOMAIN": NotFound,
    "VIR_ERR_NO_NETWORK": NotFound,
    "VIR_ERR_NO_NWFILTER": NotFound,
    "VIR_ERR_DOM_EXIST": Conflict,
    "VIR_ERR_OPERATION_INVALID": WrongState,
    "VIR_ERR_RESOURCE_BUSY": WrongState,
    "VIR_ERR_XML_ERROR": InvalidRequest,
    "VIR_ERR_XML_DETAIL": InvalidRequest,
    "VIR_ERR_XML_INVALID_SCHEMA": InvalidRequest,
    "VIR_ERR_CONFIG_UNSUPPORTED": InvalidRequest,
    "VIR_ERR_NO_MEMORY": NotEnoughResources,
    "VIR_ERR_OPERATION_TIMEOUT": DeadlineExceeded,
    "VIR_ERR_NO_SUPPORT": BackendError,
    "VIR_ERR_AUTH_FAILED": BackendError,
    "VIR_ERR_AUTH_CANCELLED": BackendError,
    "VIR_ERR_AUTH_UNAVAILABLE": BackendError,
    "VIR_ERR_ACCESS_DENIED": BackendError,
    "VIR_ERR_OPERATION_DENIED": BackendError,
}
ACCESS = "run as root (sudo), or as a member of the group libvirt"
_HINTS = {
    "VIR_ERR_NO_NETWORK": "virsh net-list --all",
    "VIR_ERR_AUTH_FAILED": ACCESS,
    "VIR_ERR_AUTH_CANCELLED": ACCESS,
    "VIR_ERR_AUTH_UNAVAILABLE": ACCESS,
    "VIR_ERR_ACCESS_DENIED": ACCESS,
    "VIR_ERR_OPERATION_DENIED": ACCESS,
}
# For a guest that can't start: VIR_ERR_INTERNAL_ERROR with QEMU's output.
_WORDS: tuple[tuple[str, type[VmclonerError], str | None], ...] = (
    # The daemon must ask polkit about users other than root, and D-Bus isn't running.
    ("Unable to get system bus connection", BackendError, ACCESS),
    ("Cannot allocate memory", NotEnoughResources, "stop some clones, or give them less memory"),
    ("Unknown driver 'rbd'", BackendError, "apt-get install qemu-block-extra"),
    (
        "Permission denied",
        HostCommandError,
        "QEMU's user must be able to reach that file: vmcloner host check",
    ),
)
# Numbers of virErrorLevel, which share their prefix with virErrorNumber.
_LEVELS = {"VIR_ERR_NONE", "VIR_ERR_WARNING", "VIR_ERR_ERROR"}


def code_name(error: Any) -> str:
    """Return the name of a libvirt error's code, ``VIR_ERR_NO_DOMAIN``."""
    return _names().get(error.get_error_code(), f"VIR_ERR_{error.get_error_code()}")


@functools.cache
def _names() -> dict[int, str]:
    return {
        value: name
        for name, value in vars(libvirt()).items()
        if name.startswith("VIR_ERR_") and name not in _LEVELS
    }


def is_code(error: Any, *names: str) -> bool:
    """Tell whether a libvirt error has one of these codes."""
    return code_name(error) in names


def is_disconnect(error: Any) -> bool:
    """Tell whether a call failed because its connection broke."""
    module = libvirt()
    return error.get_error_domain() in (
        module.VIR_FROM_RPC,
        module.VIR_FROM_REMOTE,
    ) and is_code(
        error,
        "VIR_ERR_SYSTEM_ERROR",
        "VIR_ERR_INTERNAL_ERROR",
        "VIR_ERR_RPC",
        "VIR_ERR_NO_CONNECT",
        "VIR_ERR_INVALID_CONN",
    )


def translate(error: Any, about: str) -> VmclonerError:
    """Return our error for a libvirt error about a domain, a host or a connection."""
    code = code_name(error)
    message = str(error.get_error_message() or error).strip()
    first = next(iter(message.splitlines()), "no message")[:500]
    kind, hint = _CLASSES.get(code, HostCommandError), _HINTS.get(code)
    if kind is HostCommandError:
        for words, other, way_out in _WORDS:
            if words in message:
                kind, hint = other, way_out
                break
    return kind(f"{about}: {first} [{code}]", hint=hint)
