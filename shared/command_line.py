"""A configuration's keys as options of a command, and errors of the command line in one line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from shared.config import Leaf, Schedule, as_plain, did_you_mean, leaves_of, type_name
from shared.text_yaml import dump_yaml

SCHEDULES = (
    "[p0,v0,v1,p1]: v0 until the fraction p0 of the run, then linear to v1, which is reached at the fraction p1. "
    "Field units: the scene or cloud lies in the box from -1 to 1."
)


def add_config_arguments(parser: argparse.ArgumentParser, cls: type, without: Sequence[str] = ()) -> None:
    """Add every key of `cls` as an option `--section.key VALUE`, grouped by section, but those in `without`.

    What the user sets is collected in order, as text, in the namespace's list `overrides` of (dotted key, text) pairs.
    """
    parser.set_defaults(overrides=[])
    if any(leaf.type is Schedule for leaf in leaves_of(cls).values()):
        parser.epilog = SCHEDULES
    groups: dict[str, Any] = {}
    for leaf in leaves_of(cls).values():
        if leaf.name in without:
            continue
        section = leaf.name.rpartition(".")[0] or "general"
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} keys")
        # One word without brackets: argparse cannot wrap its usage text around anything else.
        metavar = "|".join(map(str, leaf.metadata.get("choices") or ())) or type_name(leaf.type).split()[0].upper()
        groups[section].add_argument(
            f"--{leaf.name}", dest="overrides", action=_Override, metavar=metavar, help=_help(leaf)
        )


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the closest known option or command, and exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that works today would break when a key is added.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with code 2."""
        unknown = re.search(r"unrecognized arguments: ([^\s=]+)|invalid choice: '([^']*)'", message)
        hint = did_you_mean(unknown[1] or unknown[2], _known_words(self)) if unknown else ""
        print(f"error: {' '.join(message.split())}{hint or f'; see {self.prog} --help'}", file=sys.stderr)
        raise SystemExit(2)


def _known_words(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices
            for command in action.choices.values():
                yield from _known_words(command)


class _Override(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = str(option_string).removeprefix("--")
        # A new list: the one in the namespace may be the parser's default.
        namespace.overrides = [*(namespace.overrides or []), (name, values)]


def _help(leaf: Leaf) -> str:
    default = "none" if leaf.default in (None, "", ()) else dump_yaml(as_plain(leaf.default)).strip()
    return f"{leaf.metadata.get('help', '')} ({type_name(leaf.type)}; default {default})".replace("%", "%%")
