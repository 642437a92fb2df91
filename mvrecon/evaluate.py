"""Held-out photos against renderings."""

from typing import Any

import numpy as np

from mvrecon.checkpoint import LoadedRun
from mvrecon.render import render_view
from mvrecon.scene import Scene
from shared.metrics import psnr, ssim


def image_figures(run: LoadedRun, scene: Scene) -> dict[str, Any]:
    """Means over the held-out views of `psnr` (dB) and `ssim` (0..1) of whole images, (H, W, 3), and, with masks, of
    `psnr_masked` over the pixels inside them (views with an empty mask left out).

    Without a learnt background what surrounds the object is rendered black. Empty without held-out views.
    """
    rows = []
    for view in scene.test:
        cameras = scene.cameras.select([int(view)]).to(run.device)
        color = render_view(run.model, run.volume, cameras, 0).color.clip(0, 1)
        row = {"psnr": psnr(color, scene.images[view]), "ssim": ssim(color, scene.images[view])}
        if scene.masks is not None and (scene.masks[view] > 127).any():
            row["psnr_masked"] = psnr(color, scene.images[view], scene.masks[view] > 127)
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
