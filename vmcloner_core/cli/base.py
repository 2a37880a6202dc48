"""What commands share: errors as exit codes, options of runs, a run's summary."""

from __future__ import annotations

import argparse
import errno
import functools
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cliff.command import Command
from cliff.lister import Lister
from cliff.show import ShowOne

from vmcloner_core.cli.formats import PlainTable, WholeJson
from vmcloner_core.cli.usage import agrees, printable, refuse, say, unwritten
from vmcloner_core.errors import (
    Interrupted,
    PartialFailure,
    UsageError,
    VmclonerError,
    did_you_mean,
    said,
)
from vmcloner_core.model import NEVER
from vmcloner_core.plan import (
    DEFAULT_TIMEOUT,
    EMULATED,
    ClonePlan,
    CloneResult,
    Plan,
    Quota,
    Readiness,
    RunResult,
    Sizes,
)
from vmcloner_core.remote import FANOUT
from vmcloner_core.request import Request, TargetRequest, check_aim
from vmcloner_core.units import counted, format_seconds, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from vmcloner_core.cli.app import Shell
    from vmcloner_core.engine import Engine

DIFFERS = 12
"""The exit code if what is compared differs: ``diff``, and ``--fail-if``."""


class Base(Command):
    """A command with the engine; its errors become one line and an exit code."""

    example = ""
    app: Shell

    @property
    def engine(self) -> Engine:
        """The shell's engine."""
        return self.app.engine

    def get_epilog(self) -> str:
        """Return the example that is shown below the options.

        cliff's own epilog names the distribution, and reads the files of every one to find it.
        """
        return f"example:\n  {self.example}"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.description = _wrapped(parser.description or "")
        parser.error = functools.partial(refuse, parser)  # type: ignore[method-assign]
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; returns its exit code."""
        code = self.guarded(lambda: super(Base, self).run(parsed_args) or 0)
        for unseen in self.app.missed():
            say(f"{unseen} ({unseen.hint})")
            code = code or PartialFailure.exit_code
        return code

    def guarded(self, work: Callable[[], int]) -> int:
        """Do some work; an error becomes one line and its exit code."""
        try:
            return work()
        except VmclonerError as error:
            return self.app.failed(error)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:  # cliff would exit silently
            return self.app.failed(Interrupted("stopped", hint="run the same command again"))
        except OSError as error:  # of this host's files: no bug, and not for a traceback
            if error.errno == errno.EBADF:  # standard output is closed
                return unwritten(error)
            from vmcloner_core.os_errors import of_state

            return self.app.failed(of_state(error, error.filename or self.cmd_name))
        except Exception as error:
            if self.app.options.debug:
                raise
            say(f"unexpected {said(error)} (try --debug)")
            return 1


def _wrapped(text: str) -> str:
    """Return paragraphs wrapped to the terminal, as argparse wraps all but the description."""
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(textwrap.fill(part, width) for part in text.split("\n\n"))


class _Display(Base):
    """What tables and records share."""

    columns: Sequence[str] = ()
    """The names of all columns. If given, a wrong ``-c`` is refused before anything is done."""

    _formatter_plugins: Any

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser; tables fit the terminal unless the user says otherwise."""
        self._formatter_plugins["table"].obj = PlainTable()
        self._formatter_plugins["json"].obj = WholeJson()
        parser = super().get_parser(prog_name)
        parser.set_defaults(fit_width=sys.stdout.isatty())
        (column,) = (a for a in parser._actions if "--column" in a.option_strings)
        column.__class__ = _Columns  # cliff makes the options
        (form,) = (a for a in parser._actions if a.option_strings == ["-f", "--format"])
        form.metavar = "FORMAT"
        form.help = f"The output format: {', '.join(form.choices or ())}."
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; returns its exit code."""
        if not self.columns:
            return super().run(parsed_args)
        return self.guarded(lambda: self.check_columns(parsed_args, self.columns)) or super().run(
            parsed_args
        )

    @staticmethod
    def for_people(parsed_args: argparse.Namespace) -> bool:
        """Tell whether the output is for people: sizes have units, and not all columns are shown.

        Other formats than ``table`` are for programs.
        """
        return bool(parsed_args.formatter == "table")

    @staticmethod
    def check_columns(parsed_args: argparse.Namespace, known: Sequence[str]) -> int:
        """Check that the columns that the user asks for exist; returns 0.

        :raises UsageError: one doesn't.
        """
        for column in parsed_args.columns:
            if column not in known:
                raise UsageError(f"no column {column!r}", hint=did_you_mean(column, known))
        return 0

    @staticmethod
    def shown(parsed_args: argparse.Namespace, values: Iterable[Any]) -> tuple[Any, ...]:
        """Return values for the output format: JSON and YAML keep their types and null."""
        if parsed_args.formatter in ("json", "yaml"):
            return tuple(values)
        words = {True: "yes", False: "no"} if parsed_args.formatter == "table" else {}
        return tuple(
            words.get(value, value) if isinstance(value, bool) else _text(value) for value in values
        )


def _text(value: object) -> object:
    """Return a value as a cell: lists as words, mappings as ``key=value``.

    Control characters are escaped: parts come from guests, and a terminal would act on them.
    """
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(word)}" for key, word in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(_text(each)) for each in value)
    if isinstance(value, str):
        return printable(value)
    return "" if value is None else value


class _Columns(argparse._AppendAction):
    """``-c COLUMN``. In commands that count, a number is still what it was before: ``--count``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take one argument."""
        if option_string != "-c" or not values.isdecimal():
            super().__call__(parser, namespace, values, option_string)
        elif "--count" in parser._option_string_actions:
            say(f"-c {values} is taken as --count {values}: write -n {values}, -c is for --column")
            namespace.count = int(values)
        else:
            raise argparse.ArgumentError(self, f"{values} is not the name of a column")


class Table(_Display, Lister):
    """A command that prints rows."""

    nothing = ""
    """The sentence for people if there are no rows, with the next thing to do."""
    short: Sequence[str] = ()
    """The columns for people, if not all. ``--wide`` shows all; the other formats always do."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser; with ``--wide`` if there are columns that people don't see."""
        parser = super().get_parser(prog_name)
        if self.short:
            parser.add_argument(
                "-w",
                "--wide",
                action="store_true",
                help="All columns; lines as long as they are (for less -S).",
            )
        return parser

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows."""
        self.check_columns(parsed_args, column_names)
        rows: Sequence[tuple[Any, ...]] = [self.shown(parsed_args, row) for row in data]
        if not rows and parsed_args.formatter == "table" and not parsed_args.print_empty:
            if self.nothing:
                note(self.app, self.nothing)
            return 0
        if self.short and parsed_args.wide:
            parsed_args.fit_width = False
        elif self.short and self.for_people(parsed_args) and not parsed_args.columns:
            places = [column_names.index(name) for name in self.short]
            rows = [tuple(row[place] for place in places) for row in rows]
            column_names = self.short
        if self.for_people(parsed_args) and not parsed_args.columns:
            column_names, rows = _without_errors(column_names, rows)
        return super().produce_output(parsed_args, column_names, rows) or 0


def _without_errors(
    names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> tuple[Sequence[str], Sequence[tuple[Any, ...]]]:
    """Return columns and rows without the last column if that is of errors and there are none."""
    if not rows or names[-1] != "error" or any(row[-1] for row in rows):
        return names, rows
    return names[:-1], [row[:-1] for row in rows]


class Record(_Display, ShowOne):
    """A command that prints one object."""

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the object."""
        self.check_columns(parsed_args, column_names)
        shown = self.shown(parsed_args, data)
        return super().produce_output(parsed_args, column_names, shown) or 0


class RunCommand(Table):
    """A command that carries out a run.

    Prints the plan with ``--dry-run``; else a table of the clones that failed (in other formats,
    of all clones) and a one-line summary.
    """

    waits = False
    _plan: Plan | None = None
    _result: RunResult | None = None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser with the options that all runs have."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        parser.add_argument(
            "-j", "--jobs", type=int, metavar="N", help="At most N calls to a backend at once."
        )
        if self.waits:
            parser.add_argument(
                "--wait",
                action="store_true",
                help="Wait until each is ready, as the template or --for says.",
            )
            add_readiness(parser, more="; implies --wait")
            add_boot_jobs(parser)
        return parser

    def request(self, parsed_args: argparse.Namespace) -> Request:
        """Return what the command line asks for."""
        raise AssertionError(parsed_args)

    def confirm(self, plan: Plan, parsed_args: argparse.Namespace) -> None:
        """Ask before the plan is carried out, in commands that do."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Plan or run; returns columns and rows."""
        request = self.request(parsed_args)
        columns = PLAN_COLUMNS if parsed_args.dry_run else RESULT_COLUMNS
        self.check_columns(parsed_args, columns)
        if parsed_args.dry_run:
            self._plan = self.engine.plan(request)
            tell_needs(self._plan)
            return columns, plan_rows(self._plan)

        def begin(plan: Plan) -> None:
            for warning in plan.warnings:
                note(self.app, warning)
            self.confirm(plan, parsed_args)

        result = self.engine.run(request, on_plan=begin)
        self._result = result
        shown: Sequence[CloneResult] = result.results
        if self.for_people(parsed_args):  # how many were not done is in the summary
            shown = [clone for clone in result.failures if not isinstance(clone.error, Interrupted)]
        return columns, [result_row(clone) for clone in shown]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then the run's summary.

        :raises VmclonerError: the run did not do everything.
        """
        rows = list(data)
        if rows or self._result is None or parsed_args.formatter != "table":
            super().produce_output(parsed_args, column_names, rows)
        if self._result is not None:
            from vmcloner_core.results import check_result

            if self._result.failures:
                runs = self.engine.host.runs
                note(self.app, f"log of this run: {runs}/{self._result.plan.run}.jsonl")
            if self._result.interrupted:
                note(self.app, f"so far: {so_far(self._result)}")
            check_result(self._result)
            note(self.app, summary(self._result))
        elif self._plan is not None and self._plan.missing is not None:
            raise self._plan.missing
        return 0


PLAN_COLUMNS = ("name", "steps", "template", "hypervisor", "storage", "mac")
RESULT_COLUMNS = ("name", "status", "step", "seconds", "error")


def plan_rows(plan: Plan) -> list[tuple[object, ...]]:
    """Return a plan's clones as rows of :data:`PLAN_COLUMNS`."""
    return [
        (
            clone.name,
            ",".join(clone.steps),
            clone.labels.template,
            clone.labels.hypervisor,
            clone.labels.storage,
            next(iter(_macs(clone)), None),
        )
        for clone in plan.clones
    ]


def _macs(clone: ClonePlan) -> Sequence[str]:
    if clone.spec is not None:
        return clone.spec.macs
    return clone.domain.macs if clone.domain is not None else ()


def tell_needs(plan: Plan) -> None:
    """Print a plan's totals and warnings to standard error."""
    parts = [f"{counted(len(plan.clones), 'clone')} to {plan.action}"]
    if plan.existing:
        parts.append(f"{len(plan.existing)} unchanged")
    if plan.import_image and plan.template is not None:
        parts.append(f"imports the image of {plan.template.name}")
    if plan.space:
        parts.append(f"{format_size(plan.space)} of space")
    if plan.memory:
        parts.append(f"{format_size(plan.memory)} of memory")
    waits = [clone.wait.seconds for clone in plan.clones if "wait" in clone.steps]
    if waits:
        parts.append(f"waits up to {format_seconds(max(waits))} for each")
    for line in ("; ".join(parts), *plan.warnings):
        say(line)


def result_row(clone: CloneResult) -> tuple[object, ...]:
    """Return a clone's result as a row of :data:`RESULT_COLUMNS`."""
    return (
        clone.name,
        "ok" if clone.error is None else "failed",
        clone.failed_step,
        round(sum(clone.seconds.values()), 3),
        str(clone.error) if clone.error is not None else None,
    )


def summary(result: RunResult) -> str:
    """Return one line on a run that succeeded: how many clones it did what to."""
    done, unchanged = _done(result, [clone for clone in result.results if clone.error is None])
    unchanged += len(result.plan.existing)
    parts = _counts(result, done)
    if result.failures:
        parts.append(f"{len(result.failures)} failed")
    if unchanged:
        parts.append(f"{unchanged} unchanged")
    return f"{', '.join(parts)} in {format_seconds(result.seconds)}"


def so_far(result: RunResult) -> str:
    """Return what a run that was stopped did to how many clones."""
    gone = set(result.rolled_back)
    done, _ = _done(result, [clone for clone in result.results if clone.name not in gone])
    return ", ".join(_counts(result, done))


def _counts(result: RunResult, done: Sequence[tuple[str, int]]) -> list[str]:
    first, *others = done or [(_words(result, ()), 0)]
    return [
        f"{counted(first[1], 'clone')} {first[0]}",
        *(f"{number} {words}" for words, number in others),
    ]


def _done(result: RunResult, clones: Iterable[CloneResult]) -> tuple[list[tuple[str, int]], int]:
    """Return what a run did with how many clones, the most first; and with how many it did nothing.

    A step that found nothing to do isn't counted, but a wait is: the clone is ready.
    """
    planned = {clone.name: clone.steps for clone in result.plan.clones}
    groups: Counter[tuple[str, ...]] = Counter()
    for clone in clones:
        waited = {"wait"} if clone.error is None else set()
        steps = set(planned[clone.name]) & {*waited, *clone.changed}
        groups[tuple(step for step in result.plan.order if step in steps)] += 1
    unchanged = groups.pop((), 0)
    most_first = sorted(groups, key=len, reverse=True)
    done: Counter[str] = Counter()
    for group in most_first:
        done[_words(result, group)] += groups[group]
    return list(done.items()), unchanged


def _words(result: RunResult, steps: Sequence[str]) -> str:
    """Return what steps did to clones, like ``created, started and ready``."""
    from vmcloner_core.steps import ACTIONS, STEPS

    return _listed(ACTIONS[result.plan.action].words([(name, STEPS[name].past) for name in steps]))


def _listed(words: Sequence[str]) -> str:
    """Return words as people list them: a, b and c."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def agreed(what: str, question: str, *, about: Sequence[str] = (), sure: bool) -> None:
    """Ask the user at the terminal, unless that isn't needed.

    :param what: the command. :param sure: whether not to ask, as with ``--yes``.
    :param about: lines that say what is asked, and are printed with ``--quiet`` too.
    :raises UsageError: there is no terminal. :raises Interrupted: the answer is no.
    """
    if sure:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{what} needs a terminal to ask", hint="or use --yes")
    for line in about:
        say(line)
    if not agrees(question):
        raise Interrupted("nothing was changed")


def note(app: Shell, text: str) -> None:
    """Print a remark to standard error, unless ``--quiet`` is given."""
    if app.options.verbose_level:
        say(text)


def waiting(parsed_args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a request that ``--wait`` and :func:`add_readiness` give."""
    wait = None
    if parsed_args.readiness is not None:
        wait = Readiness.parse(parsed_args.readiness, timeout=parsed_args.timeout)
    fields = {"ready": parsed_args.wait, "wait": wait, "timeout": parsed_args.timeout}
    fields["boot_jobs"] = getattr(parsed_args, "boot_jobs", None)
    if parsed_args.min_ready is not None:
        fields["min_ready"] = Quota.parse(parsed_args.min_ready)
        if not (parsed_args.wait or wait):
            raise UsageError("--min-ready needs --wait", hint="add --wait, or --for WHAT")
    return fields


def add_readiness(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add the options that say what to wait for, how long, and how many must get ready."""
    parser.add_argument(
        "--for",
        dest="readiness",
        metavar="WHAT",
        help="running, ip, port:N, ssh (login succeeds), cloud-init (it has finished), agent (the "
        f"guest agent reports), or console:REGEX where {{{{ name }}}} is the clone's name{more}.",
    )
    parser.add_argument(
        "--min-ready",
        metavar="SHARE",
        help="Succeed if this many get ready: 95%%, or a number (default all).",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"Seconds to wait for each (default {DEFAULT_TIMEOUT:.0f}; where guests are "
        f"emulated, {EMULATED} times as long).",
    )


def add_boot_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many guests may boot at once."""
    parser.add_argument(
        "--boot-jobs",
        type=_boot_jobs,
        metavar="N",
        help="At most N guests boot at once, or auto: as many as the host can carry.",
    )


def add_origin(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what clones are made from, and in which backends."""
    parser.add_argument(
        "-t", "--template", required=True, metavar="NAME", help="Template to clone."
    )
    add_backends(parser)
    parser.add_argument(
        "--full", action="store_true", help="Full copies, not linked to the template."
    )


def add_backends(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a clone's backends."""
    parser.add_argument(
        "-e", "--hypervisor", metavar="NAME", help="Hypervisor from the settings, like kvm or xen."
    )
    parser.add_argument("--storage", metavar="NAME", help="Storage pool from the settings.")


def add_identical(parser: argparse.ArgumentParser, default: bool | None = False) -> None:
    """Add the option for forks without an identity of their own."""
    parser.add_argument(
        "--identical",
        action=argparse.BooleanOptionalAction if default is None else "store_true",
        default=default,
        help="Forks stay exact copies of that guest, with its name, keys and machine-id; only "
        "their network cards are their own. It needs neither agent nor image build.",
    )


def add_copying(parser: argparse.ArgumentParser) -> None:
    """Add the options for copying bytes."""
    parser.add_argument(
        "--bwlimit",
        type=size,
        metavar="SIZE",
        help="Write at most this much per second to the pool, like 100MiB.",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Read full copies and imports back and compare them.",
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options for the sizes of clones."""
    parser.add_argument("--memory", type=size, metavar="SIZE", help="Memory, like 512MiB.")
    parser.add_argument("--vcpus", type=int, metavar="N", help="Virtual processors.")
    parser.add_argument(
        "--disk-size", type=size, metavar="SIZE", help="Size of the first disk, like 10GiB."
    )


def sizes(parsed_args: argparse.Namespace) -> Sizes:
    """Return what :func:`add_sizes` was given."""
    return Sizes(memory=parsed_args.memory, vcpus=parsed_args.vcpus, disk=parsed_args.disk_size)


def _boot_jobs(text: str) -> int | str:
    """Return the argument of ``--boot-jobs``; the request checks it."""
    return int(text) if text.isdecimal() else text


def size(text: str) -> int:
    """Return the bytes of an option's value."""
    try:
        return parse_size(text)
    except VmclonerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_ttl(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the option that says how long a lease lasts."""
    parser.add_argument("--ttl", type=_ttl, metavar="TIME", help=f"{words}, like 30min, 4h or 2d.")


def _ttl(text: str) -> int | str:
    """Return the argument of ``--ttl``; the request checks its range."""
    return text if text == NEVER else duration(text)


def duration(text: str) -> int:
    """Return an option's duration in seconds."""
    try:
        return parse_duration(text)
    except VmclonerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_targets(parser: argparse.ArgumentParser, *, everything: bool) -> None:
    """Add the targets of a command, with ``--all`` if it may apply to all clones."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="A fleet (web), a clone (web-3) or a node set (web-[1-10,15]).",
    )
    if everything:
        parser.add_argument("--all", action="store_true", help="All clones on the host.")


def targeted(action: str, parsed_args: argparse.Namespace, **more: Any) -> TargetRequest:
    """Return a request about the targets of :func:`add_targets`.

    :param more: its other fields.
    """
    return TargetRequest(
        action=action,
        targets=tuple(parsed_args.targets),
        everything=parsed_args.all,
        jobs=parsed_args.jobs,
        **more,
    )


def add_count(parser: argparse.ArgumentParser) -> None:
    """Add ``--count`` in the sense of "at most N"."""
    parser.add_argument("-n", "--count", type=int, metavar="N", help="At most N of them.")


def add_fanout(parser: argparse.ArgumentParser, timeout: float = 60.0) -> None:
    """Add the options of commands that run in many clones at once."""
    parser.add_argument(
        "-j",
        "--jobs",
        type=int,
        default=FANOUT,
        metavar="N",
        help=f"At most N clones at once (default {FANOUT}).",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=timeout,
        metavar="S",
        help=f"Seconds for each clone, including the login (default {timeout:.0f}).",
    )


def chosen(parsed_args: argparse.Namespace, what: str) -> tuple[str, ...]:
    """Return the targets of a command that has ``--all``; no targets means all clones.

    :param what: the command. :raises InvalidRequest: targets and ``--all``, or neither.
    """
    check_aim(what, parsed_args.targets, everything=parsed_args.all)
    return tuple(parsed_args.targets)
