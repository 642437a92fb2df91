"""A configuration is a tree of frozen dataclasses; defaults, a YAML file and the command line are laid over each other.

YAML scalars are read as plain text, so that a value means the same in a file and after a flag: one converter serves
both, directed by the type of the key. A misspelt key or an impossible value is an error, never a silent default.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from shared.errors import UserError
from shared.text_yaml import dump_yaml, read_yaml

Config = TypeVar("Config")

PRESETS = Path(__file__).parents[1] / "configs"

TRUE, FALSE, NONE = ("true", "yes", "on"), ("false", "no", "off"), ("null", "none", "~", "")
TYPE_NAMES = {bool: "true|false", int: "integer", float: "number", str: "text"}


@dataclass(frozen=True, init=False)
class Schedule:
    """A number that may change over a run: `Schedule(v)`, or `Schedule(p0, v0, v1, p1)`.

    Progress is the fraction of the run in 0..1. The value is v0 until p0, then linear to v1 at p1, then v1.
    With p0 == p1 it jumps. Raises ValueError for anything else than one or four finite numbers, 0 <= p0 <= p1 <= 1.
    """

    numbers: tuple[float, ...]

    def __init__(self, *numbers: float) -> None:
        if len(numbers) not in (1, 4):
            raise ValueError(f"a schedule is one number or [p0, v0, v1, p1], not {len(numbers)} numbers")
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a schedule has finite numbers only")
        if len(numbers) == 4 and not 0 <= numbers[0] <= numbers[3] <= 1:
            raise ValueError("a schedule [p0, v0, v1, p1] needs 0 <= p0 <= p1 <= 1")
        object.__setattr__(self, "numbers", tuple(float(number) for number in numbers))

    @property
    def values(self) -> tuple[float, ...]:
        """The values it moves between, without the fractions of the run."""
        return self.numbers if len(self.numbers) == 1 else self.numbers[1:3]

    def __call__(self, progress: float) -> float:
        """The value at this fraction of the run."""
        if len(self.numbers) == 1:
            return self.numbers[0]
        start, first, last, end = self.numbers
        if progress < start:
            return first
        if progress >= end:
            return last
        return first + (last - first) * (progress - start) / (end - start)


def key(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A documented dataclass field. The bounds are inclusive and hold for each number of a tuple or a schedule."""
    return field(default=default, metadata={"help": help, "choices": choices, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True)
class Leaf:
    """One settable key of a configuration: its dotted name, its type, its default and what `key` said about it."""

    name: str
    type: Any
    default: Any
    metadata: Mapping[str, Any]

    def convert(self, value: Any) -> Any:
        """The value of this key from text, or nested lists of text. Raises ValueError when it is impossible."""
        value = _convert(self.type, _as_text(value))
        for element in _elements(value):
            self._check(element)
        return value

    def _check(self, element: Any) -> None:
        choices, minimum, maximum = (self.metadata.get(name) for name in ("choices", "minimum", "maximum"))
        if choices and element not in choices:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{element!r} is not one of {listed}{did_you_mean(str(element), map(str, choices))}")
        if minimum is not None and element < minimum:
            raise ValueError(f"{element} is too small; the minimum is {minimum}")
        if maximum is not None and element > maximum:
            raise ValueError(f"{element} is too large; the maximum is {maximum}")


def read_config(cls: type[Config], file: Path | None, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """The defaults of `cls`, then the YAML file or preset, then the command line's (dotted key, text) pairs.

    Raises UserError, naming the file or the flag, for an unreadable file, an unknown key or an impossible value.
    """
    leaves = leaves_of(cls)
    program = getattr(cls, "PROGRAM", None)
    file = find_preset(file, program) if file is not None and program else file
    values = _read_values(leaves, _without_program(cls, read_yaml(file), file), str(file)) if file is not None else {}
    for name, text in overrides:
        if name not in leaves:
            raise UserError(f"--{name}: unknown key{did_you_mean(name, leaves, '--')}; --help lists all keys")
        values[name] = _convert_or_blame(leaves[name], text, f"--{name}")
    return _build(cls, values, str(file or "command line"))


def find_preset(file: Path, program: str) -> Path:
    """The file, or, where there is none, the program's preset of that name. Raises UserError where there is none."""
    presets = presets_of(program)
    if not file.is_file() and str(file) not in presets:
        guess = did_you_mean(file.stem, presets)
        raise UserError(f"{file}: no such file, nor a preset; give a YAML file, or one of {', '.join(presets)}{guess}")
    return file if file.is_file() else presets[str(file)]


def presets_of(program: str) -> dict[str, Path]:
    """The presets that come with a program, by their names."""
    return {path.stem: path for path in sorted((PRESETS / program).glob("*.yaml"))}


def from_mapping(cls: type[Config], mapping: Mapping[str, Any], where: str) -> Config:
    """The defaults of `cls` overlaid with nested mappings of plain values. `where` names the source in a UserError."""
    return _build(cls, _read_values(leaves_of(cls), mapping, where), where)


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of `from_mapping`: nested dicts of plain values, every key present."""
    mapping: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        mapping[f.name] = to_mapping(value) if _is_section(value) else as_plain(value)
    return mapping


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML text; reading it back gives an equal configuration.

    A class with a `PROGRAM` (the command it belongs to) has that in the first line, and `read_config` compares it.
    """
    program = {"program": config.PROGRAM} if hasattr(config, "PROGRAM") else {}
    return dump_yaml({**program, **to_mapping(config)})


def type_name(kind: Any) -> str:
    """The name of a key's type for people: `integer`, `number or none`, `integers`, ..."""
    if inner := _optional(kind):
        return f"{type_name(inner)} or none"
    if get_origin(kind) is tuple:
        return f"{type_name(get_args(kind)[0])},..."
    return "number or [p0,v0,v1,p1]" if kind is Schedule else TYPE_NAMES[kind]


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?` for the closest known word, or nothing when none is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"; did you mean {prefix}{match[0]}?" if match else ""


def _is_section(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, Schedule)


def leaves_of(cls: type) -> dict[str, Leaf]:
    """All settable keys of a configuration by dotted name."""
    return {leaf.name: leaf for leaf in _walk(cls(), "")}


def _walk(section: Any, prefix: str) -> Iterator[Leaf]:
    hints = get_type_hints(type(section))
    for f in fields(section):
        default = getattr(section, f.name)
        if _is_section(default):
            yield from _walk(default, f"{prefix}{f.name}.")
        else:
            yield Leaf(prefix + f.name, hints[f.name], default, f.metadata)


def _without_program(cls: type, mapping: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The mapping without the line `program` of a class that has one. Raises UserError when it names another."""
    own = getattr(cls, "PROGRAM", None)
    if own is None or "program" not in mapping:
        return mapping
    if mapping["program"] != own:
        program = mapping["program"]
        raise UserError(f"{file}: is for `{program}`, not for `{own}`; use `{program}`, or another file")
    return {name: value for name, value in mapping.items() if name != "program"}


def _read_values(leaves: Mapping[str, Leaf], mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nested mappings to {dotted key: converted value}."""
    values: dict[str, Any] = {}
    for name, value in _flatten(leaves, mapping, where, ""):
        if name in values:
            raise UserError(f"{where}: {name} is given twice; remove one of the two")
        values[name] = _convert_or_blame(leaves[name], value, f"{where}: {name}")
    return values


def _flatten(
    leaves: Mapping[str, Leaf], mapping: Mapping[str, Any], where: str, prefix: str
) -> Iterator[tuple[str, Any]]:
    for part, value in mapping.items():
        name = f"{prefix}{part}"
        if name in leaves:
            yield name, value
        elif not any(leaf.startswith(f"{name}.") for leaf in leaves):
            known = [*leaves, *{leaf.rpartition(".")[0] for leaf in leaves}]
            raise UserError(f"{where}: unknown key {name}{did_you_mean(name, known)}; --help lists all keys")
        elif isinstance(value, Mapping):
            yield from _flatten(leaves, value, where, f"{name}.")
        elif value not in (None, ""):
            raise UserError(f"{where}: {name} is a section of keys, not a value; write its keys indented below it")


def _convert_or_blame(leaf: Leaf, value: Any, where: str) -> Any:
    try:
        return leaf.convert(value)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _build(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    try:
        return _overlay(cls(), values, "")
    except ValueError as error:  # the classes' own checks between keys
        raise UserError(f"{where}: {error}") from error


def _overlay(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    def changed(f: Field[Any]) -> Any:
        old, name = getattr(config, f.name), prefix + f.name
        return _overlay(old, values, f"{name}.") if _is_section(old) else values.get(name, old)

    return replace(config, **{f.name: changed(f) for f in fields(config)})


def as_plain(value: Any) -> Any:
    """A key's value as YAML has it: a schedule as a number or a list, a tuple as a list."""
    if isinstance(value, Schedule):
        return value.numbers[0] if len(value.numbers) == 1 else list(value.numbers)
    return list(value) if isinstance(value, tuple) else value


def _as_text(value: Any) -> Any:
    """Plain values as YAML's loader would have given them: text, or lists of text."""
    value = as_plain(value)
    if isinstance(value, list):
        return [_as_text(element) for element in value]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, Mapping) else str(value)


def _elements(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Schedule):
        return value.values
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _optional(kind: Any) -> Any:
    """T of `T | None`, else None."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    return next(argument for argument in get_args(kind) if argument is not type(None))


def _convert(kind: Any, value: Any) -> Any:
    """Text, or lists of text, to a value of this type. Raises ValueError."""
    if inner := _optional(kind):
        return None if isinstance(value, str) and value.lower() in NONE else _convert(inner, value)
    if kind is Schedule:
        return Schedule(*(_convert(float, number) for number in _as_list(value)))
    if get_origin(kind) is tuple:
        return tuple(_convert(get_args(kind)[0], element) for element in _as_list(value))
    if kind is str and isinstance(value, str):
        return value
    return _convert_scalar(kind, value if isinstance(value, str) else "a list or a section")


def _convert_scalar(kind: type, text: str) -> bool | int | float:
    if kind is bool and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if kind is int and re.fullmatch(r"[+-]?\d+", text):
        return int(text)  # exact beyond 2^53, where the way through a float below is not
    try:
        number = float(text) if kind in (int, float) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError(f"expected {TYPE_NAMES[kind]}, got {text!r}")
    return kind(number)


def _as_list(value: Any) -> list[Any]:
    """A YAML list, or the text of one: `8,24,40` or `[8, 24, 40]`."""
    if isinstance(value, str):
        inner = value.strip().removeprefix("[").removesuffix("]").strip()
        return [part.strip() for part in inner.split(",")] if inner else []
    return value if isinstance(value, list) else [value]
