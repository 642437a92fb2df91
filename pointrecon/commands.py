"""The command line of `pointrecon`: fit, batch, mesh, slice, isopoints, eval."""

import argparse
import sys
from pathlib import Path
from typing import Any

from shared.command_line import Parser, add_config_arguments
from shared.config import presets_of, read_config
from shared.errors import UserError, main_guard
from shared.loop import one_budget

KINDS = "PLY, XYZ, TXT, CSV, NPY, NPZ, OBJ, OFF, STL, PCD, LAS or LAZ"


def build_parser() -> Parser:
    """All commands and options, with their help."""
    from pointrecon.config import Config

    parser = Parser(prog="pointrecon", description="A point cloud to a surface; no normals needed.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    presets = f"a preset ({', '.join(presets_of(Config.PROGRAM))}) or a YAML file"
    fit = commands.add_parser("fit", help="fit a surface to a cloud")
    fit.add_argument("cloud", nargs="?", type=Path, help=f"{KINDS} file")
    fit.add_argument("--config", type=Path, help=presets)
    fit.add_argument("--out", type=Path, required=True, help="folder of the run; the surface is RUN/mesh.ply")
    fit.add_argument("--resume", action="store_true", help="continue the run in --out")
    add_config_arguments(fit, Config, without=["cloud"])
    batch = commands.add_parser("batch", help="fit every cloud of a folder; what is done already is not done again")
    batch.add_argument("clouds", type=Path, help=f"folder of {KINDS} files")
    batch.add_argument("--config", type=Path, help=presets)
    batch.add_argument("--out", type=Path, required=True, help="folder for NAME.ply, runs/NAME and metrics.csv")
    batch.add_argument("--gt", type=Path, metavar="FOLDER", help="exact meshes, or points on the surfaces, NAME.*")
    add_config_arguments(batch, Config, without=["cloud"])
    _add_outputs(commands)
    evaluate = commands.add_parser("eval", help="measure a run or a mesh; prints a table")
    evaluate.add_argument(
        "run", type=Path, metavar="RUN|MESH", help="folder of a run (writes RUN/eval.json) or a mesh file"
    )
    evaluate.add_argument(
        "--gt", type=Path, required=True, metavar="MESH|CLOUD", help="the exact mesh, or points on the surface"
    )
    evaluate.add_argument("--published", action="store_true", help="add the figures of papers, as each defines its own")
    for command in commands.choices.values():
        if command not in (fit, batch):
            command.add_argument(
                "--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: as fitted)"
            )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_outputs(commands: Any) -> None:
    """The commands that make something of a run."""
    mesh = _add_run(commands, "mesh", "extract the surface of a run again: finer, coarser, cut or simplified")
    mesh.add_argument(
        "--resolution", type=int, help="cells along an edge of the box, of that of each tile (default: as fitted)"
    )
    for name in ("trim", "snap", "smallest", "faces"):
        mesh.add_argument(f"--{name}", help=f"as `fit --{name}` (default: as fitted)")
    mesh.add_argument("--out", type=Path, help="mesh file: .ply, .obj, .glb or .stl (default RUN/mesh.ply)")
    slices = _add_run(commands, "slice", "pictures of the field with its level sets")
    slices.add_argument(
        "--axis", choices=("x", "y", "z"), default="z", help="axis that the slices are perpendicular to (default z)"
    )
    slices.add_argument("--count", type=int, default=1, help="how many slices (default 1, in the middle)")
    slices.add_argument("--out", type=Path, help="folder for the pictures (default RUN/slices)")
    points = _add_run(commands, "isopoints", "points spread evenly over the surface, with normals")
    points.add_argument("--count", type=int, default=20_000, help="how many points (default 20000)")
    points.add_argument("--out", type=Path, help="point cloud file, .ply (default RUN/isopoints.ply)")


def _add_run(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("run", type=Path, help="folder of a run")
    return command


def run_fit(args: argparse.Namespace) -> int:
    """`pointrecon fit`: exit code 0, or 130 when it was interrupted (and saved)."""
    from pointrecon.config import Config
    from pointrecon.fit import fit
    from shared.ranks import process_group
    from shared.runtime import choose_device

    # A run goes on with what it was made with; flags may still change that, a preset may not.
    own = args.out / "config.yaml"
    file = own if args.resume and own.is_file() else args.config
    if args.resume and file is None:
        raise UserError(f"{args.out}: holds no run to resume; give the folder of an earlier run, or drop --resume")
    overrides = [*one_budget(args.overrides), *([("cloud", str(args.cloud))] if args.cloud is not None else [])]
    config = read_config(Config, file, overrides)
    if not config.cloud:
        raise UserError("CLOUD: missing; give the file of the point cloud")
    with process_group(choose_device(config.device)):
        return 0 if fit(config, args.out, args.resume) else 130


def run_mesh(args: argparse.Namespace) -> None:
    """`pointrecon mesh`."""
    from pointrecon.checkpoint import load_run
    from pointrecon.config import Config
    from pointrecon.surface import cloud_of_run, finished_mesh
    from shared.mesh import check_format, save_mesh

    if args.resolution is not None and args.resolution < 8:
        raise UserError(f"--resolution {args.resolution}: too small; use 8 or more")
    out = args.out or args.run / "mesh.ply"
    check_format(out)  # now, not after minutes
    run = load_run(args.run, args.device)
    asked = {name: getattr(args, name) for name in ("trim", "snap", "smallest", "faces")} | {
        "train.resolution": args.resolution
    }
    given = [(name, str(value)) for name, value in asked.items() if value is not None]
    config = read_config(Config, run.folder / "config.yaml", given)
    mesh = finished_mesh(run.field, run.to_world, cloud_of_run(config), config, run.device)
    save_mesh(mesh, out)
    print(f"{out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")


def run_batch(args: argparse.Namespace) -> int:
    """`pointrecon batch`: exit code 0, 2 when a cloud failed, 130 when it was interrupted."""
    from pointrecon.batch import fit_all

    return fit_all(args.clouds, args.out, args.config, args.overrides, args.gt)


def run_slice(args: argparse.Namespace) -> None:
    """`pointrecon slice`."""
    from pointrecon.checkpoint import load_run
    from pointrecon.slices import write_slices

    run = load_run(args.run, args.device)
    write_slices(run, args.axis, args.count, args.out or run.folder / "slices")


def run_isopoints(args: argparse.Namespace) -> None:
    """`pointrecon isopoints`."""
    from pointrecon.checkpoint import load_run
    from pointrecon.surface import save_isopoints

    run = load_run(args.run, args.device)
    out = args.out or run.folder / "isopoints.ply"
    made = save_isopoints(run, args.count, out)
    fewer = ", fewer than asked for: most fell on what --trim cuts, or the surface has no room for more"
    print(f"{out}: {made} points{fewer if made < args.count else ''}")


def run_eval(args: argparse.Namespace) -> None:
    """`pointrecon eval`."""
    from pointrecon.evaluate import evaluate
    from shared.report import write_report

    figures = evaluate(args.run, args.gt, args.device, args.published)
    write_report(figures, args.run / "eval.json" if args.run.is_dir() else None)


COMMANDS = {
    "fit": run_fit,
    "batch": run_batch,
    "mesh": run_mesh,
    "slice": run_slice,
    "isopoints": run_isopoints,
    "eval": run_eval,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def run() -> int | None:
        args = build_parser().parse_args(arguments)
        return COMMANDS[args.command](args)

    return main_guard(run, debug="--debug" in arguments)
