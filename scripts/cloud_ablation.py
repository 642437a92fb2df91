#!/usr/bin/env python3
"""What the parts of a fit are worth, each changed on its own: one resumable table of clouds with known surfaces.

    scripts/cloud_ablation.py --meshes MESHES --out ablation.csv --steps 2000 --seeds 3
    scripts/cloud_ablation.py --meshes MESHES --out ablation.csv --only parts,alignment/mse --shapes fandisk

parts: alignment and iso-points, for the objectives pull and siren, the latter also with normals. alignment: its
variants (Ma et al. 2023, tables 6 to 8). neural-pull: the choices of Ma et al. 2021 (tables 8, 10, 11 and 13). All on
the default field, by as many steps; clouds have no normals but where that is said. Rows that the file holds already
are not made again.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks for modules beside it only

import shared  # noqa: F401, I001  (before torch: it sets how its threads wait)
import numpy as np
import torch
from torch import nn

from pointrecon.adapt import adapt
from pointrecon.config import Config
from pointrecon.surface import finished_mesh
from pointrecon.survey import survey
from pointrecon.trainer import Trainer
from scripts.cloud_cases import KINDS, Kind, Points, as_it_is, load_truth, make_cloud, one_file
from shared.command_line import Parser
from shared.config import read_config
from shared.csv_table import read_table, write_table
from shared.errors import UserError, main_guard
from shared.field import Field
from shared.geometry import fit_box
from shared.levelset import parallelism
from shared.loop import use_threads
from shared.mesh import Mesh, is_watertight, volume
from shared.metrics import compare_meshes, sample_surface
from shared.report import QUERIES, QUERY_SPREAD, diagonal
from shared.runtime import choose_device

KEY = ("group", "setting", "kind", "shape", "seed", "steps")
FIGURES = ("l1", "normals", "angle", "volume", "seconds")
RESOLUTION = 256  # of the meshes that are measured
ISO_POINTS, ISO_WARMUP = 4000, 300
# Of the alignment: ten times the paper's, which is best for sparse clouds; and a hundredth of what a distance counts.
ALIGNMENT = {"pull": "0.1", "siren": "10"}


class Setting(NamedTuple):
    """Keys of a fit, on some kinds of clouds; whether the field starts as a sphere, and whether the clouds have the
    exact surface's normals."""

    group: str
    name: str
    kinds: tuple[str, ...]
    keys: dict[str, str]
    sphere: bool = True
    normals: bool = False


def settings(steps: int) -> list[Setting]:
    """All of them, for fits of so many steps."""
    return [*parts(steps), *alignment(), *neural_pull(steps)]


def parts(steps: int) -> Iterator[Setting]:
    """Alignment and iso-points, on and off; these after a fifth of a short run, and anew every twentieth of it."""
    iso = {"loss.iso_warmup": str(min(ISO_WARMUP, steps // 5)), "loss.iso_every": str(max(steps // 20, 1))}
    extras: dict[str, tuple[str, ...]] = {
        "": (),
        " + alignment": ("loss.alignment",),
        " + iso-points": ("loss.iso_points",),
        " + both": ("loss.alignment", "loss.iso_points"),
    }
    for objective, given in (("pull", False), ("siren", False), ("siren", True)):
        values = {"loss.alignment": ALIGNMENT[objective], "loss.iso_points": str(ISO_POINTS)}
        base = objective + (" with normals" if given else "")
        for name, wanted in extras.items():
            keys = {"loss.objective": objective, **iso, **{key: values[key] for key in wanted}}
            yield Setting("parts", base + name, ("20k", "20k-noise0.5", "2k"), keys, normals=given)


def alignment() -> Iterator[Setting]:
    """Ma et al. 2023, from its own settings on: the weight (table 6), what it falls with (7), what is compared (8)."""
    changes = {
        "as it is": {},
        **{f"weight {weight}": {"alignment": weight} for weight in ("0", "0.001", "0.1", "1")},
        **{f"decay {decay}": {"alignment_decay": decay} for decay in ("1", "100")},
        "no decay": {"alignment_weight": "none"},
        "euclidean": {"alignment_weight": "euclidean"},
        "fixed": {"alignment_at": "nearest"},
        "mse-normalised": {"alignment_kind": "mse-normalised"},
        "mse": {"alignment_kind": "mse"},
    }
    for name, keys in changes.items():
        keys = {"alignment": "0.01", "alignment_points": "2048", **keys}
        yield Setting("alignment", name, ("20k", "2k"), {f"loss.{key}": text for key, text in keys.items()})


def neural_pull(steps: int) -> Iterator[Setting]:
    """Ma et al. 2021: start and queries (table 8), number of queries (10) and of points (11), their range (13); all
    without alignment."""
    # Nine tenths at nine times the weight of the rest: as if all were one batch, drawn from space but for a tenth.
    space = {"queries.space_share": "0.9", "loss.space": "9"}
    alike = {"queries.closeness": "0"}  # as in the paper: else the factor would not be all that spreads them
    kinds = ("20k",)
    yield Setting("neural-pull", "as it is", kinds, {})
    yield Setting("neural-pull", "1 sigma^2", kinds, alike)
    yield Setting("neural-pull", "start at random", kinds, {}, sphere=False)
    yield Setting("neural-pull", "queries in space", kinds, space)
    yield Setting("neural-pull", "gradient constraint", kinds, {"loss.eikonal": "0.1"})
    for count in (20_000, 100_000, 500_000, 1_000_000):  # the default renews its 500,000 all the time
        keys = {"queries.pool": str(count), "queries.refresh": str(steps)}
        yield Setting("neural-pull", f"{count} queries", kinds, keys)
    for variance in (0.25, 0.5, 2, 4):
        yield Setting(
            "neural-pull", f"{variance:g} sigma^2", kinds, {**alike, "queries.factor": f"{variance**0.5:.4g}"}
        )
    for count in (1000, 2500, 5000, 10_000, 40_000):
        yield Setting("neural-pull", f"{count} points", (f"{count}",), {})


def chosen(every: list[Setting], only: str | None) -> list[Setting]:
    """Those of the groups, or the GROUP/SETTING, that `only` lists by commas. Raises UserError for others."""
    if only is None:
        return every
    wanted = [word.strip() for word in only.split(",")]
    known = {word for s in every for word in (s.group, f"{s.group}/{s.name}")}
    for word in wanted:
        if word not in known:
            raise UserError(f"--only {word}: is not one of {', '.join(sorted(known))}")
    return [s for s in every if s.group in wanted or f"{s.group}/{s.name}" in wanted]


def kind_of(name: str) -> Kind:
    """One of the known kinds, or so many exact samples."""
    return KINDS[name] if name in KINDS else Kind(int(name), as_it_is)


def fit_and_measure(setting: Setting, kind: str, truth: Mesh, steps: int, seed: int) -> dict[str, Any]:
    """The figures of a row: L1 chamfer in per cent of the truth's diagonal, normal consistency, mean angle between
    level sets in degrees, and volume by that of the truth. What needs a surface is missing where there is none."""
    began = time.monotonic()
    points = make_cloud(truth, kind_of(kind), seed)
    # The kinds that are given normals keep all points, in their order.
    normals = sample_surface(truth, len(points), seed)[1] if setting.normals else None
    to_world = fit_box(points)
    unit = to_world.to_unit(points)
    keys = {"train.steps": str(steps), "train.seed": str(seed), "train.resolution": str(RESOLUTION)}
    keys |= {"loss.alignment": "0", **setting.keys}  # a part like others: only where a setting has it
    config = adapt(read_config(Config, None, list(keys.items())), survey(unit))
    device = choose_device(config.device)
    use_threads(config.train.threads)
    trainer = Trainer(config, unit, device, normals)
    if not setting.sphere:
        start_at_random(trainer.field)
    for step in range(steps):
        trainer.step(step / steps)
    trainer.finish()
    figures: dict[str, Any] = {"angle": angle(trainer.field, unit, device, seed)}
    try:
        mesh = finished_mesh(trainer.field, to_world, None, config, device)
        compared = compare_meshes(mesh, truth, seed=seed)
    except UserError:
        return {**figures, "seconds": time.monotonic() - began}
    figures["l1"] = 100 * compared["chamfer_l1"] / diagonal(truth.vertices)
    figures["normals"] = compared["normal_consistency"]
    if is_watertight(mesh) and is_watertight(truth):
        figures["volume"] = volume(mesh) / volume(truth)
    return {**figures, "seconds": time.monotonic() - began}


def start_at_random(field: Field) -> None:
    """torch's own first weights in the place of those of a sphere (Ma et al. 2021, table 8: "No GNI")."""
    for layer in field.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def angle(field: Field, unit: Points, device: torch.device, seed: int) -> float:
    """Parallelism of the level sets at queries around the cloud, as `eval` has it around the surface."""
    rng = np.random.default_rng([seed, 11])
    around = unit[rng.integers(len(unit), size=QUERIES)] + rng.normal(scale=QUERY_SPREAD, size=(QUERIES, 3))
    return parallelism(field, torch.from_numpy(around.clip(-1, 1).astype(np.float32)).to(device))


def table(rows: list[dict[str, str]]) -> str:
    """Means over shapes and seeds in Markdown, a line for each setting on each kind of cloud."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in ("group", "kind", "setting", "steps"))].append(row)
    lines = ["| part | cloud | setting | steps | fits | L1 % | normals | angle | volume | s |", "|" + "---|" * 10]
    order = list(dict.fromkeys(key[:2] for key in groups))
    for key, group in sorted(groups.items(), key=lambda item: order.index(item[0][:2])):  # settings of a cloud together
        cells = [mean(group, column) for column in FIGURES]
        lines.append("| " + " | ".join([*key, str(len(group)), *cells]) + " |")
    return "\n".join(lines)


def mean(rows: list[dict[str, str]], column: str) -> str:
    """Of the rows that have this figure; and of how many, where some have none."""
    values = [float(row[column]) for row in rows if row.get(column)]
    missing = f" (of {len(values)})" if 0 < len(values) < len(rows) else ""
    return f"{np.mean(values):.4g}{missing}" if values else "–"


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meshes", type=Path, required=True, help="folder of exact meshes, SHAPE.*")
    parser.add_argument("--out", type=Path, required=True, help="the table, .csv")
    parser.add_argument("--shapes", default="armadillo,fandisk", help="which meshes (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of a fit (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of clouds and fits (default %(default)s)")
    parser.add_argument("--only", help="groups, or GROUP/SETTING, by commas (default: all)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    return main_guard(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> None:
    """Make what is missing and print the table."""
    truths = {name: load_truth(one_file(args.meshes, name)) for name in args.shapes.split(",")}
    rows = read_table(args.out)
    done = {tuple(row[column] for column in KEY) for row in rows}
    for seed in range(args.seeds):
        for setting in chosen(settings(args.steps), args.only):
            for kind in setting.kinds:
                for shape, truth in truths.items():
                    key = (setting.group, setting.name, kind, shape, str(seed), str(args.steps))
                    if key in done:
                        continue
                    figures = fit_and_measure(setting, kind, truth, args.steps, seed)
                    rows.append({**dict(zip(KEY, key)), **{name: f"{value:.5g}" for name, value in figures.items()}})
                    write_table(rows, args.out)
    print(table(read_table(args.out)))


if __name__ == "__main__":
    sys.exit(main())
