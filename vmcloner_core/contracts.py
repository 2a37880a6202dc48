"""Whether a plugin's driver fulfils its contract, as far as can be told without calling it."""

from __future__ import annotations

import inspect


def check_driver(driver: object, contract: type) -> str | None:
    """Return what is wrong with a driver that a factory made, None if nothing is."""
    if not isinstance(driver, contract):
        return f"its factory makes a {type(driver).__name__}, not a {contract.__name__}"
    return check_class(type(driver), contract)


def check_class(made: type, contract: type) -> str | None:
    """Return what is wrong with a class of drivers, None if nothing is.

    It must have all that the contract demands, callable as the contract's methods are: those of
    an earlier version of the contract may lack parameters.
    """
    if not issubclass(made, contract):
        return f"its factory {made.__name__} is no {contract.__name__}"
    missing = sorted(getattr(made, "__abstractmethods__", ()))
    if missing:
        return f"{made.__name__} lacks {', '.join(missing)}"
    for name, method in vars(contract).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        own = getattr(made, name)
        if own is not method and not _takes(own, method):
            wanted, found = inspect.signature(method), inspect.signature(own)
            return f"{made.__name__}.{name} takes {_names(found)}, not {_names(wanted)}"
    return None


def _takes(own: object, method: object) -> bool:
    """Tell whether a method can be called with all positional arguments of the contract's."""
    if not callable(own) or not callable(method):
        return False
    try:
        inspect.signature(own).bind(*inspect.signature(method).parameters)
    except TypeError:
        return False
    except ValueError:  # it is none of Python's: nothing can be told
        return True
    return True


def _names(signature: inspect.Signature) -> str:
    return f"({', '.join(name for name in signature.parameters if name != 'self')})"
