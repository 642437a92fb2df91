"""YAML in which every scalar is text: what a value means is decided by the key it is given to, not by its spelling.

So `1e-3` is never a string by surprise, `0065` keeps its zeros and `no` may be a file name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from shared.errors import UserError


def read_yaml(file: Path) -> Mapping[str, Any]:
    """The nested mappings of a YAML file with text, or lists of text, as values.

    Raises UserError naming the file (and the line) when it is unreadable, malformed, not a mapping, or repeats a key.
    """
    try:
        mapping = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a text file; give a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{file}: {line}{getattr(error, 'problem', None) or error}; mend the YAML") from error
    if mapping in (None, ""):
        return {}
    if not isinstance(mapping, Mapping):
        raise UserError(f"{file}: is not a mapping of keys to values; write `key: value` lines")
    return mapping


def dump_yaml(value: Any) -> str:
    """Nested dicts of plain values as YAML text in their own order, lists on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text.removesuffix("...\n")  # the document end that follows a lone scalar


class _TextLoader(yaml.BaseLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
            seen.add(str(name.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
