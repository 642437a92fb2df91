"""Photo | rendering | normals of a run's held-out views, one row a view, from what `mvrecon render` wrote of them."""

import argparse
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from mvrecon.config import Config
from mvrecon.datasets import load
from shared.config import read_config
from shared.errors import UserError, main_guard
from shared.run_folder import save_png


def contact_sheet(run: Path, out: Path, rows: int = 3) -> None:
    """Write the sheet of at most `rows` held-out views to `out`, a PNG."""
    scene = load(read_config(Config, run / "config.yaml").data)
    sheet = []
    for view in scene.test[:rows]:
        files = [run / "render_test" / f"{scene.names[int(view)]}_{kind}.png" for kind in ("color", "normal")]
        if not files[0].is_file():
            raise UserError(f"{files[0]}: not there; run `mvrecon render {run} --path test` first")
        sheet.append(np.concatenate([scene.images[view], *(imageio.imread(file) for file in files)], axis=1))
    if not sheet:
        raise UserError(f"{run}: has no held-out views to show; train with --data.holdout")
    save_png(out, np.concatenate(sheet))


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()
    return main_guard(lambda: contact_sheet(args.run, args.out), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
