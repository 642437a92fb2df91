"""A folder of clouds to a folder of surfaces and one table of their figures."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointrecon.config import Config
from pointrecon.evaluate import evaluate
from pointrecon.fit import fit
from shared.cloud_formats import READERS
from shared.config import read_config
from shared.csv_table import read_table, write_table
from shared.errors import UserError
from shared.loop import one_budget
from shared.mesh import READABLE, load_mesh, save_mesh
from shared.report import flatten


def fit_all(
    clouds: Path, out: Path, preset: Path | None, overrides: Sequence[tuple[str, str]], truths: Path | None
) -> int:
    """Fit every cloud in folder `clouds`: OUT/runs/NAME, OUT/NAME.ply, and a row each in OUT/metrics.csv.

    Runs that are finished are left as they are, others go on where they were. A cloud that fails gets its error as its
    row, and the rest go on. Figures are against the file of the same name in `truths`, or else against the cloud.
    Returns the exit code: 0, 2 if a cloud failed, 130 if interrupted. Raises UserError for a folder without clouds, and
    for a preset or keys that are wrong.
    """
    files = sorted(path for path in clouds.glob("*") if path.suffix.lower() in READERS) if clouds.is_dir() else []
    if not files:
        raise UserError(f"{clouds}: is no folder with point clouds; give one with {', '.join(READERS)} files")
    if out.resolve() == clouds.resolve():
        raise UserError(f"{out}: holds the clouds; give another folder for the surfaces")
    names = [path.stem if sum(p.stem == path.stem for p in files) == 1 else path.name for path in files]
    known = {row.get("name"): row for row in read_table(out / "metrics.csv")}
    given = read_config(Config, preset, one_budget(list(overrides)))
    rows: dict[str, dict[str, Any]] = {name: known[name] for name in names if name in known}
    for number, (path, name) in enumerate(zip(files, names), 1):
        print(f"[{number}/{len(files)}] {path}")
        try:
            if not _fitted(replace(given, cloud=str(path)), out, name):
                return 130
            figures = evaluate(out / "runs" / name, _truth(path, truths))
            rows[name] = {"name": name, "error": "", **flatten(figures)}
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            rows[name] = {"name": name, "error": str(error)}
        write_table(list(rows.values()), out / "metrics.csv")
    failed = sum(bool(row["error"]) for row in rows.values())
    print(f"{out / 'metrics.csv'}: {len(rows) - failed} of {len(rows)} clouds")
    return 2 if failed else 0


def _fitted(config: Config, out: Path, name: str) -> bool:
    """Whether the run is finished: made now, continued, or found."""
    run, surface = out / "runs" / name, out / f"{name}.ply"
    if not (run / "mesh.ply").is_file() and not fit(config, run, resume=(run / "config.yaml").is_file()):
        return False
    if not surface.is_file():
        save_mesh(load_mesh(run / "mesh.ply"), surface)
    return True


def _truth(cloud: Path, truths: Path | None) -> Path:
    """What to measure against. Raises UserError where a folder of truths has none for this cloud."""
    if truths is None:
        return cloud
    readable = {*READERS, *READABLE}
    found = sorted(path for path in truths.glob("*") if path.stem == cloud.stem and path.suffix.lower() in readable)
    if not found:
        raise UserError(f"{truths}: has no {cloud.stem}.*; add the exact surface, or leave out --gt")
    return found[0]
