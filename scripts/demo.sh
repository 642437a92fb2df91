#!/usr/bin/env bash
# Sets up, renders 40 photos of an object built in code, reconstructs it, and shows the result beside the truth.
# Pictures, films, meshes and figures land in runs/demo (or the folder given as the first argument).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
out=${1:-runs/demo}
python=.venv/bin/python
if [ ! -f "$out/scene/cameras_sphere.npz" ]; then
  OMP_NUM_THREADS=1 $python scripts/make_scene.py demo --out "$out/scene" --views 40 --size 400x300
fi
if [ ! -f "$out/run/mesh.ply" ]; then
  resume=$([ -f "$out/run/config.yaml" ] && echo --resume || true)
  .venv/bin/mvrecon train --config configs/mvrecon/demo.yaml --data.root "$out/scene" --out "$out/run" $resume
fi
.venv/bin/mvrecon render "$out/run" --path test
.venv/bin/mvrecon render "$out/run" --path orbit --frames 48 --out "$out/orbit.mp4"
.venv/bin/mvrecon eval "$out/run" --gt-mesh "$out/scene/mesh.ply"
$python scripts/contact_sheet.py "$out/run" --out "$out/photo_rendering_normals.png"
echo "look at $out/photo_rendering_normals.png, $out/orbit.mp4 and $out/run/mesh.ply"
