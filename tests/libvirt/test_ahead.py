"""Definitions that are fetched ahead: in order, each once, and no more once nobody wants them."""

import threading
import time
from collections.abc import Sequence

import libvirt
import pytest

from vmcloner_libvirt import ahead

MANY = 5 * ahead.TOGETHER + 3


class Named:
    """A domain with its name for a definition."""

    fails: Sequence[str] = ()
    gone: Sequence[str] = ()

    def __init__(self, number: int, asked: list[str]) -> None:
        self.name = f"d{number}"
        self.asked = asked

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        self.asked.append(self.name)
        if self.name in self.fails:
            raise failure(libvirt.VIR_ERR_RPC)
        if self.name in self.gone:
            raise failure(libvirt.VIR_ERR_NO_DOMAIN)
        return self.name


def failure(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("it failed")
    error.err = (code, 0, "it failed", 0, "", None, None, 0, 0)
    return error


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.mark.parametrize("count", [0, 1, ahead.TOGETHER, ahead.TOGETHER + 1, MANY])
def test_each_is_fetched_once_and_comes_in_order(asked: list[str], count: int) -> None:
    domains = [Named(number, asked) for number in range(count)]
    assert list(ahead.definitions(domains)) == [domain.name for domain in domains]
    assert len(asked) == len(set(asked)) == count


def test_the_next_are_fetched_while_one_is_looked_at(asked: list[str]) -> None:
    texts = ahead.definitions([Named(number, asked) for number in range(MANY)])
    assert next(texts) == "d0"
    end = time.monotonic() + 10
    while len(asked) < MANY and time.monotonic() < end:
        time.sleep(0.01)
    assert len(asked) == MANY


def test_few_domains_need_no_threads(asked: list[str]) -> None:
    before = threading.active_count()
    texts = ahead.definitions([Named(number, asked) for number in range(ahead.TOGETHER)])
    assert next(texts) == "d0"
    assert threading.active_count() == before


@pytest.mark.parametrize("number", [0, MANY - 1])
def test_one_that_is_gone_has_none(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Named, "gone", [f"d{number}"])
    found = list(ahead.definitions([Named(each, asked) for each in range(MANY)]))
    assert [at for at, text in enumerate(found) if text is None] == [number]


def test_a_lost_connection_is_raised_and_ends_each_batch(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Named, "fails", [f"d{number}" for number in range(MANY)])
    with pytest.raises(libvirt.libvirtError):
        list(ahead.definitions([Named(number, asked) for number in range(MANY)]))
    for thread in threading.enumerate():
        if thread.name == "definitions":
            assert thread.daemon
            thread.join(10)
    assert len(asked) <= MANY / ahead.TOGETHER + 1


def test_no_more_are_fetched_once_the_reader_stops(asked: list[str]) -> None:
    texts = ahead.definitions([Slow(number, asked) for number in range(MANY)])
    assert next(texts) == "d0"
    texts.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "definitions":
            thread.join(10)
    assert len(asked) < MANY


class Slow(Named):
    """A domain whose definition takes a while."""

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's name
        time.sleep(0.005)
        return super().XMLDesc(flags)
