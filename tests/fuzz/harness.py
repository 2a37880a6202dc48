"""Feeds readers with mutated inputs, each reader in a process of its own.

An input follows from the reader's name, a seed and a number, so that a fault can be repeated::

    python -m tests.fuzz.harness grub 1 --first 4711 --count 1
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[2]
CPU_SECONDS = 2
"""Processor time of one input: time on the clock would depend on the machine's load."""
WAIT_SECONDS = 300
"""Time on the clock, for a reader that waits instead of working."""
MEMORY = 256 * 1024**2
MAX_INPUT = 256 * 1024
MAX_FAULTS = 10
_CODE = tuple(
    {str(ROOT), sys.prefix, sys.base_prefix, *map(sysconfig.get_path, ("stdlib", "platstdlib"))}
)
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1)


class Escaped(BaseException):
    """A reader opened a file outside of its folder, or started something."""


# --- inputs ---------------------------------------------------------------------------------------


def mutated(chance: random.Random, seeds: list[bytes], words: list[bytes]) -> bytes:
    """Return one of the seeds after some mutations."""
    data = bytearray(chance.choice(seeds))
    for _ in range(min(chance.randrange(1, 20), chance.randrange(1, 20), chance.randrange(1, 20))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 | 1 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 2 if data:
                data[at % len(data)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3 if words:
                data[at : at + chance.choice((0, 0, 1, 8))] = chance.choice(words)
            case 4:  # a splice
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                length = chance.randrange(1, 200)
                data[at : at + chance.choice((0, length))] = other[start : start + length]
            case 5:  # a repetition
                piece = bytes(data[at : at + chance.randrange(1, 64)])
                data[at:at] = piece * chance.choice((2, 3, 10, 200))
            case 6:  # a number
                order = chance.choice("<>") + chance.choice("HIQ")
                size = struct.calcsize(order)
                number = chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
                data[at : at + size] = struct.pack(order, number)
            case 7 if chance.random() < 0.2:
                del data[at:]
    return bytes(data[:MAX_INPUT])


_TOKEN = re.compile(rb"\\w+|[ \\t]+|.", re.DOTALL)


def reshaped(chance: random.Random, seeds: list[bytes], words: list[bytes]) -> bytes:
    """Return one of the seeds with lines and words changed so that most of it can be read.

    Lines are dropped, repeated, moved or taken from another seed; a word becomes another word, and
    what follows a ``=`` becomes what follows another. A quarter of the inputs is then mutated too.
    """
    lines = chance.choice(seeds).split(b"\n")
    others = [line for seed in seeds for line in seed.split(b"\n")]
    values = [value for line in others if (value := line.partition(b"=")[2])] + words or [b""]
    for _ in range(min(chance.randrange(1, 6), chance.randrange(1, 6))):
        at = chance.randrange(len(lines) or 1)
        match chance.randrange(6):
            case 0:
                del lines[at : at + chance.choice((1, 1, 1, 4))]
            case 1:
                lines[at:at] = lines[chance.randrange(len(lines) or 1) :][: chance.choice((1, 4))]
            case 2 if lines:
                lines.insert(chance.randrange(len(lines)), lines.pop(at))
            case 3:
                lines.insert(at, chance.choice(others))
            case 4 if lines:
                key, equals, _ = lines[at].partition(b"=")
                lines[at] = key + equals + chance.choice(values) if equals else lines[at]
            case 5 if lines:
                tokens = _TOKEN.findall(lines[at]) or [b""]
                place = chance.randrange(len(tokens))
                found = [*_TOKEN.findall(chance.choice(others)), chance.choice(words or [b"0"])]
                alike = [new for new in found if new.isalnum() == tokens[place].isalnum()]
                tokens[place] = chance.choice(alike or found)
                lines[at] = b"".join(tokens)
    data = b"\n".join(lines)
    return mutated(chance, [data], words) if chance.random() < 0.25 else data[:MAX_INPUT]


# --- the child ------------------------------------------------------------------------------------


@contextlib.contextmanager
def nothing_outside(folder: str) -> Iterator[None]:
    """Let nothing be opened but what is in ``folder``, and Python's own code."""
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
            raise Escaped(f"{event}{args!r}")
        if event not in ("open", "os.listdir", "os.scandir") or not isinstance(
            args[0], str | bytes
        ):
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100 - a hook opens nothing
        if not path.startswith((f"{folder}/", *_CODE)) and path != folder:
            raise Escaped(f"{event} {path}")

    sys.addaudithook(hook)
    try:
        yield
    finally:
        watching = False


@contextlib.contextmanager
def bounded_time() -> Iterator[None]:
    """End this process if what is done takes too long, whatever it does."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_inputs(name: str, seed: str, numbers: range, seconds: float, progress: int) -> None:
    """Read inputs; print each fault as a line of JSON, and at last a line with the figures.

    :param progress: file descriptor to write the number of the input to that is being read.
    """
    from tests.fuzz.readers import READERS

    reader = READERS[name]
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as folder:
        seeds = reader.seeds(Path(made))
        for data in seeds:  # imports what is imported late
            with contextlib.suppress(*reader.errors):
                reader.read(data, Path(folder))
        faulthandler.register(signal.SIGPROF, chain=True)
        faulthandler.register(signal.SIGALRM, chain=True)
        limit = _virtual_size() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with nothing_outside(folder):
            _feed(name, seed, seeds, numbers, seconds, Path(folder), progress)


def _feed(
    name: str,
    seed: str,
    seeds: list[bytes],
    numbers: range,
    seconds: float,
    folder: Path,
    progress: int,
) -> None:
    from tests.fuzz.readers import READERS

    reader, faults = READERS[name], set[str]()
    start, slowest, done, values = _peak(), 0.0, 0, 0
    until = time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > until or len(faults) > MAX_FAULTS:
            break
        os.pwrite(progress, b"%020d" % number, 0)
        data = reader.mutate(random.Random(f"{name} {seed} {number}"), seeds, reader.words)
        began = time.process_time()
        try:
            with bounded_time():
                reader.read(data, folder)
            values += 1
        except reader.errors:
            pass
        except (Exception, Escaped) as error:
            lines = traceback.format_exception(error)
            if lines[-2] not in faults:
                faults.add(lines[-2])
                _say(fault=number, what="".join(lines[-4:]))
        slowest = max(slowest, time.process_time() - began)
        done += 1
    _say(inputs=done, values=values, slowest=slowest, memory=_peak() - start)


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _virtual_size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- the parent -----------------------------------------------------------------------------------


@attrs.define
class Result:
    """What a reader did. ``values``: inputs that were no error; a fault has an input's number."""

    inputs: int = 0
    values: int = 0
    slowest: float = 0.0
    memory: int = 0
    faults: list[tuple[int, str]] = attrs.field(factory=list)


def fuzz(name: str, seed: str, *, first: int = 0, count: int = 10**9, seconds: float) -> Result:
    """Feed one reader in a child process, and in another one where that has ended early."""
    result = Result()
    end, until = first + count, time.monotonic() + seconds
    while first < end and (left := until - time.monotonic()) > 0:
        with tempfile.TemporaryFile() as progress, tempfile.TemporaryFile() as errors:
            number = progress.fileno()
            os.pwrite(number, b"%020d" % -1, 0)
            argv = [sys.executable, "-m", "tests.fuzz.harness", name, seed, "--first", str(first)]
            argv += ["--count", str(end - first), "--seconds", str(left), "--progress", str(number)]
            done = subprocess.run(
                argv,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=[number],
                check=False,
            )
            for line in map(json.loads, done.stdout.splitlines()):
                if "fault" in line:
                    result.faults.append((line["fault"], line["what"]))
                else:
                    result.inputs += line["inputs"]
                    result.values += line["values"]
                    result.slowest = max(result.slowest, line["slowest"])
                    result.memory = max(result.memory, line["memory"])
            if done.returncode == 0:
                break
            at = int(os.pread(number, 20, 0))
            said = os.pread(errors.fileno(), 4000, 0).decode(errors="replace")
            if at < first:
                raise RuntimeError(f"{name} doesn't read its own seeds: {said}")
            result.faults.append((at, f"the process ended with {done.returncode}: {said}"))
            result.inputs += at + 1 - first
            first = at + 1
            if len(result.faults) > MAX_FAULTS:
                break
    return result


def main() -> int:
    """Feed the readers in turn and print a table."""
    from tests.fuzz.readers import READERS

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="?", default="all")
    parser.add_argument("seed", nargs="?", default="0")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=600, help="of all readers together")
    parser.add_argument("--progress", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.progress is not None:
        numbers = range(args.first, args.first + args.count)
        run_inputs(args.names, args.seed, numbers, args.seconds, args.progress)
        return 0
    names = list(READERS) if args.names == "all" else args.names.split(",")
    print(
        f"{'reader':16} {'inputs':>9} {'accepted':>9} {'slowest':>9} {'memory':>9}  faults",
        flush=True,
    )
    failed = False
    for name in names:
        found = fuzz(
            name, args.seed, first=args.first, count=args.count, seconds=args.seconds / len(names)
        )
        peak = f"{found.memory / 1024**2:.0f} MiB"
        row = (found.inputs, found.values, f"{found.slowest:.3f} s", peak, len(found.faults))
        print(f"{name:14}", *(f"{cell:>9}" for cell in row), flush=True)
        for number, what in found.faults:
            failed = True
            print(f"{name} {args.seed} --first {number} --count 1:\n{what}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
