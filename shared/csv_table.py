"""Tables that people open: rows of named cells in CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.run_folder import atomic_write


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file yet."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All rows, in place of the file; columns in the order in which rows bring them up, empty where a row has none."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())
