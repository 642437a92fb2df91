#!/usr/bin/env python3
"""The default fit of spoilt clouds with known surfaces, beside screened Poisson at its best: one resumable table.

    scripts/cloud_table.py MESHES --scans SCANS --out table.csv
    scripts/cloud_table.py MESHES --out table.csv --shapes armadillo --kinds 20k,2k --seeds 1 --steps 2000

MESHES holds exact meshes; SCANS pairs of NAME_scan.ply and NAME_mesh.ply, and scans of which no surface is known, each
measured by a fifth of its points that no fit gets. Figures that the file holds already are not measured again. Screened
Poisson (pip install isopull[benchmark]) is the best of four settings by the truth, a choice that no user can make,
trimmed by distance; and once more with its points denoised before, by moving least squares, and, in noise, once more as
the fits do that (by estimated normals, where fits have the field's).
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import shared  # noqa: F401, I001  (before torch: it sets how its threads wait)
import numpy as np

from pointrecon.config import Config
from pointrecon.fit import fit
from scripts.cloud_cases import (
    KINDS,
    Denoise,
    Points,
    Truth,
    best_poisson,
    brings_together,
    filtered,
    held_out,
    load_truth,
    make_cloud,
    measure,
    moving_least_squares,
    one_file,
)
from shared.command_line import Parser
from shared.config import read_config
from shared.csv_table import read_table, write_table
from shared.errors import UserError, main_guard
from shared.mesh import Mesh, component_count, is_watertight, load_mesh, volume
from shared.pointcloud import read_cloud

SHAPES = ("armadillo", "horse", "nefertiti", "fandisk")
KEY = ("shape", "kind", "seed")
OTHERS: dict[str, Denoise | None] = {"poisson": None, "smoothed": moving_least_squares, "filtered": filtered}


class Case(NamedTuple):
    """A cloud and its surface."""

    shape: str
    kind: str
    seed: int
    points: Points
    truth: Truth


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Every cloud of the table, the first seed of all of them first."""
    unknown = [kind for kind in args.kinds.split(",") if kind not in KINDS]
    if unknown:
        raise UserError(f"--kinds {','.join(unknown)}: not one of {', '.join(KINDS)}")
    shapes = {name: load_truth(one_file(args.meshes, name)) for name in args.shapes.split(",") if name}
    for seed in range(args.seeds):
        for kind in args.kinds.split(","):
            for name, truth in shapes.items():
                yield Case(name, kind, seed, make_cloud(truth, KINDS[kind], seed), truth)
        for path in sorted(args.scans.glob("*_scan.ply")) if args.scans else []:
            truth = load_truth(path.with_name(path.name.replace("_scan", "_mesh")))
            yield Case(path.stem.removesuffix("_scan"), "scan", seed, read_cloud(path).points, truth)
        for path in sorted(args.scans.glob("*.ply")) if args.scans else []:
            if not path.stem.endswith(("_scan", "_mesh")):
                yield Case(path.stem, "held out", seed, *held_out(path, seed))


def ours(case: Case, overrides: list[tuple[str, str]]) -> dict[str, Any]:
    """Figures of `pointrecon fit`: L1 chamfer in per cent of the diagonal, normals, volume by that of the truth."""
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        cloud, run = Path(folder) / "cloud.npy", Path(folder) / "run"
        np.save(cloud, case.points)
        config = read_config(Config, None, [("cloud", str(cloud)), ("train.seed", str(case.seed)), *overrides])
        if not fit(config, run):
            raise KeyboardInterrupt
        mesh = load_mesh(run / "mesh.ply")
    seconds = time.monotonic() - began
    truth, share = case.truth, None
    if isinstance(truth, Mesh) and is_watertight(mesh) and is_watertight(truth):
        share = volume(mesh) / volume(truth)
    return {
        **measure(mesh, truth, case.seed),
        "volume": "" if share is None else share,
        "components": component_count(mesh),
        "seconds": seconds,
    }


def theirs(case: Case, known: dict[str, str]) -> dict[str, Any]:
    """Figures of screened Poisson that are not known yet."""
    figures: dict[str, Any] = {}
    for name, denoise in OTHERS.items():
        if known.get(f"{name}_l1") or (denoise is filtered and not brings_together(case.points)):
            continue
        best = best_poisson(case.points, case.truth, denoise)
        figures |= {f"{name}_{column}": value for column, value in best.items()}
    return figures


def table(rows: list[dict[str, str]]) -> str:
    """Means over the seeds, and over the shapes of each kind, in Markdown."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["kind"], row["shape"]].append(row)
        groups[row["kind"], "**mean**"].append(row)
    heads = [
        f"{name}: L1 % | normals | ratio" for name in ("Poisson", "after moving least squares", "denoised as ours")
    ]
    lines = [f"| cloud | shape | seeds | L1 % | normals | volume | parts | s | {' | '.join(heads)} |"]
    lines.append("|" + "---|" * 17)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for (its_kind, shape), group in sorted(groups.items(), key=lambda item: item[0][1].startswith("*")):
            if its_kind == kind:
                lines.append(_line(kind, shape, group))
    return "\n".join(lines)


def _line(kind: str, shape: str, group: list[dict[str, str]]) -> str:
    def mean(column: str, digits: int) -> str:
        values = [float(row[column]) for row in group if row.get(column)]
        return f"{np.mean(values):.{digits}f}" if values else "–"

    parts = "/".join(sorted({row.get("components", "") for row in group}))
    figures = [str(len({row["seed"] for row in group})), mean("l1", 4), mean("normals", 4)]
    figures += [mean("volume", 3), parts, mean("seconds", 0)]
    for other in OTHERS:
        # Of a kind, the mean of the ratios: the shapes' errors differ in size.
        both = [row for row in group if row.get("l1") and row.get(f"{other}_l1")]
        ratio = f"{np.mean([float(row['l1']) / float(row[f'{other}_l1']) for row in both]):.3f}" if both else "–"
        figures += [mean(f"{other}_l1", 4), mean(f"{other}_normals", 4), ratio]
    return f"| {kind} | {shape} | {' | '.join(figures)} |"


def _filled(path: Path) -> list[dict[str, str]]:
    """Rows of a table without their empty cells."""
    return [{column: text for column, text in row.items() if text} for row in read_table(path)]


def _key(row: dict[str, str] | Case) -> tuple[str, ...]:
    return tuple(str(row[column] if isinstance(row, dict) else getattr(row, column)) for column in KEY)


def _texts(figures: dict[str, Any]) -> dict[str, str]:
    return {name: f"{value:.5g}" if isinstance(value, float) else str(value) for name, value in figures.items()}


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", type=Path, help="folder of exact meshes, SHAPE.*")
    parser.add_argument("--scans", type=Path, help="folder of NAME_scan.ply and NAME_mesh.ply")
    parser.add_argument("--out", type=Path, required=True, help="the table, .csv")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which meshes (default %(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what is done to them (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of clouds and fits (default 3)")
    parser.add_argument("--only", choices=("ours", "poisson"), help="figures of one alone; a later call adds the rest")
    parser.add_argument("--poisson-of", type=Path, help="an older table: Poisson's figures are taken from it")
    parser.add_argument("--steps", type=int, help="steps of a fit (default: as `pointrecon fit`); another --out, then")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    return main_guard(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> None:
    """Make what is missing and print the table."""
    overrides = [("train.steps", str(args.steps))] if args.steps else []
    rows = {_key(row): row for row in _filled(args.out)}
    for row in _filled(args.poisson_of) if args.poisson_of else []:
        known = {column: text for column, text in row.items() if column.startswith((*KEY, *OTHERS))}
        rows[_key(row)] = known | rows.get(_key(row), {})
    for case in cases(args):
        row = rows.setdefault(_key(case), dict(zip(KEY, _key(case))))
        if args.only != "poisson" and not row.get("l1"):
            row |= _texts(ours(case, overrides))
        if args.only != "ours":
            row |= _texts(theirs(case, row))
        write_table([row for row in rows.values() if len(row) > len(KEY)], args.out)
    print(table(read_table(args.out)))


if __name__ == "__main__":
    sys.exit(main())
