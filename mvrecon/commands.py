"""The command line of `mvrecon`: train, mesh, render, eval."""

import argparse
import sys
from pathlib import Path

from shared.command_line import Parser, add_config_arguments
from shared.config import presets_of, read_config
from shared.errors import UserError, main_guard
from shared.loop import one_budget
from shared.run_folder import make_folder


def build_parser() -> Parser:
    """All commands and options, with their help."""
    parser = Parser(prog="mvrecon", description="Posed photos to a surface, novel views and a mesh.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="learn a scene from photos"))
    mesh = _add_run(commands, "mesh", "extract the surface of a run")
    mesh.add_argument("--resolution", type=int, default=512, help="cells along an edge of the box (default 512)")
    mesh.add_argument("--faces", type=int, help="simplify the surface to about this many faces (default: not at all)")
    mesh.add_argument("--out", type=Path, help="mesh file: .ply, .obj, .glb or .stl (default RUN/mesh.ply)")
    render = _add_run(commands, "render", "render views of a run: colour, depth and normals")
    render.add_argument("--path", default="test", help="test, train, orbit or interpolate (default test)")
    render.add_argument("--frames", type=int, default=120, help="frames of an orbit or interpolation (default 120)")
    render.add_argument("--out", type=Path, help="folder, or a film ending in .mp4 (default RUN/render_PATH)")
    evaluate = _add_run(commands, "eval", "measure a run; prints a table and writes RUN/eval.json")
    evaluate.add_argument("--gt-mesh", type=Path, help="exact mesh, in the photos' world")
    evaluate.add_argument("--gt-points", type=Path, help="points on the true surface, in the photos' world")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    from mvrecon.config import Config

    presets = f"a preset ({', '.join(presets_of(Config.PROGRAM))}) or a YAML file"
    train.add_argument("--config", type=Path, help=presets)
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    add_config_arguments(train, Config)


def _add_run(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("run", type=Path, help="folder of a run")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default: as trained)")
    return command


def run_train(args: argparse.Namespace) -> int:
    """`mvrecon train`: exit code 0, or 130 when it was interrupted (and saved)."""
    from mvrecon.config import Config
    from mvrecon.train import train
    from shared.ranks import process_group
    from shared.runtime import choose_device

    # A run goes on with what it was made with; flags may still change that, a preset may not.
    own = args.out / "config.yaml"
    file = own if args.resume and own.is_file() else args.config
    if args.resume and file is None:
        raise UserError(f"{args.out}: holds no run to resume; give the folder of an earlier run, or drop --resume")
    config = read_config(Config, file, one_budget(args.overrides))
    with process_group(choose_device(config.device)):
        return 0 if train(config, args.out, args.resume) else 130


def run_mesh(args: argparse.Namespace) -> None:
    """`mvrecon mesh`."""
    from mvrecon.checkpoint import load_run
    from mvrecon.mesh import surface_mesh
    from shared.decimate import decimate
    from shared.mesh import save_mesh

    if args.resolution < 8:
        raise UserError(f"--resolution {args.resolution}: too small; use 8 or more")
    run = load_run(args.run, args.device)
    out = args.out or run.folder / "mesh.ply"
    mesh = surface_mesh(run.model, run.to_world, args.resolution, run.device)
    if args.faces is not None:
        mesh = decimate(mesh, args.faces)
    save_mesh(mesh, out)
    print(f"{out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")


def run_render(args: argparse.Namespace) -> None:
    """`mvrecon render`."""
    from mvrecon.checkpoint import load_run
    from mvrecon.datasets import load
    from mvrecon.render import path_cameras, render_path

    if args.frames < 1:
        raise UserError(f"--frames {args.frames}: too few; use 1 or more")
    run = load_run(args.run, args.device)
    scene = load(run.config.data)
    cameras = path_cameras(scene, args.path, args.frames).to(run.device)
    views = {"test": scene.test, "train": scene.train}.get(args.path)
    names = [f"{i:04d}" for i in range(len(cameras))] if views is None else [scene.names[int(i)] for i in views]
    out = args.out or run.folder / f"render_{args.path}"
    make_folder(out.parent)
    render_path(run, cameras, names, out)
    print(f"{out}: {len(names)} views")


def run_eval(args: argparse.Namespace) -> None:
    """`mvrecon eval`."""
    from mvrecon.checkpoint import KIND, load_run
    from mvrecon.datasets import load
    from mvrecon.evaluate import image_figures
    from shared.mesh import load_mesh
    from shared.pointcloud import read_cloud
    from shared.report import against_cloud, against_mesh, level_set_angle, topology, warn_if_stale, write_report

    run = load_run(args.run, args.device)
    path = run.folder / "mesh.ply"
    if not path.is_file():
        raise UserError(f"{path}: not there yet; make it with `mvrecon mesh {run.folder}`")
    mesh = load_mesh(path)
    warn_if_stale(path, KIND)
    figures = image_figures(run, load(run.config.data))
    if args.gt_points is not None:
        cloud = read_cloud(args.gt_points)
        figures |= against_cloud(mesh, cloud.points, cloud.normals)
    if args.gt_mesh is not None:
        # With both, figures that either could give are those against the exact mesh.
        figures |= against_mesh(mesh, load_mesh(args.gt_mesh))
    figures |= {
        "level_set_angle": level_set_angle(run.model.field, mesh, run.to_world, run.device, order=2),
        **topology(mesh),
        **run.made,
    }
    write_report(figures, run.folder / "eval.json")


COMMANDS = {"train": run_train, "mesh": run_mesh, "render": run_render, "eval": run_eval}


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def run() -> int | None:
        args = build_parser().parse_args(arguments)
        return COMMANDS[args.command](args)

    return main_guard(run, debug="--debug" in arguments)
