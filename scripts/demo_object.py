"""The demo object, built in code: an owl on a tree stump, as the smooth union of rounded solids under carved relief.

One function gives the distance to every part; their union is the shape, the nearest part decides the paint.
Frame: z up, the owl looks along -y, the whole is about two units tall.
"""

import math

import numpy as np
import torch
from torch import Tensor

from shared.meshing import Mesh, extract_mesh, keep_components

Colour = tuple[float, float, float]
INK, BROWN, RUST, CREAM = (0.09, 0.06, 0.06), (0.40, 0.24, 0.14), (0.76, 0.40, 0.15), (0.95, 0.87, 0.72)
BARK, WOOD, MOSS = (0.34, 0.25, 0.19), (0.82, 0.62, 0.40), (0.40, 0.54, 0.16)
LATTICE = torch.from_numpy(np.random.default_rng(7).uniform(-1, 1, (32, 32, 32)).astype(np.float32))
TOES = ((0.07, -0.335), (0.17, -0.36), (0.27, -0.335))
GOLD, SLATE = (1.0, 0.70, 0.08), (0.26, 0.28, 0.33)


def demo_object(resolution: int = 256) -> Mesh:
    """The owl as a closed mesh of one component with smooth normals and uint8 sRGB colours, about 200k vertices."""
    mesh = keep_components(extract_mesh(owl_distance, resolution, lipschitz=1.5), 0.5)  # cavities inside go
    vertices = torch.from_numpy(mesh.vertices).float()
    with torch.enable_grad():
        vertices.requires_grad_()
        (normals,) = torch.autograd.grad(owl_distance(vertices).sum(), vertices)
    colours = owl_colour(vertices.detach()).clamp(0, 1).mul(255).round().byte().numpy()
    return Mesh(mesh.vertices, mesh.faces, torch.nn.functional.normalize(normals, dim=-1).double().numpy(), colours)


def owl_distance(x: Tensor) -> Tensor:
    """Signed distance (n,) to the owl at x (n, 3), negative inside; up to twice as steep at the relief's flanks."""
    body, wings, head, eyes, beak, toes, stump = owl_parts(x)
    owl = smooth_union(smooth_union(body, wings, 0.03), head, 0.06)
    owl = smooth_union(smooth_union(owl, eyes, 0.012), beak, 0.03)
    return smooth_union(smooth_union(owl, toes, 0.04), stump, 0.06)


def owl_parts(x: Tensor) -> tuple[Tensor, ...]:
    """Distances (n,) of body, wings, head, eyes, beak, toes and stump at x (n, 3). The owl is mirrored in x = 0."""
    m = torch.stack([x[:, 0].abs(), x[:, 1], x[:, 2]], -1)
    feathers, *_ = scales(*body_chart(x))
    tail = ellipsoid(tilt(x, (0, 0.38, -0.50), -0.35), (0, 0, 0), (0.20, 0.11, 0.30))
    body = smooth_union(ellipsoid(x, (0, 0, -0.12), (0.46, 0.42, 0.58)), tail, 0.10) - 0.020 * feathers
    quills, *_ = scales(*wing_chart(x))
    wings = ellipsoid(tilt(m, (0.40, 0.08, -0.12), -0.22), (0, 0, 0), (0.13, 0.30, 0.50)) - 0.022 * quills
    skull = ellipsoid(x, (0, -0.02, 0.47), (0.43, 0.38, 0.31)) - 0.006 * (noise(x, 26.0) + noise(x, 13.0))
    tufts = ellipsoid(tilt(m, (0.29, -0.06, 0.74), 0.0, 0.45), (0, 0, 0), (0.10, 0.09, 0.20))
    radius, angle = eye_chart(m)
    rays = torch.cos(22 * angle) * smoothstep(radius, 0.09, 0.14)
    disc = ellipsoid(m, (0.175, -0.30, 0.50), (0.20, 0.09, 0.20)) - 0.006 * rays
    head = smooth_union(smooth_union(skull, tufts, 0.10), disc, 0.03)
    head = -smooth_union(-head, ellipsoid(m, (0.175, -0.47, 0.50), (0.15, 0.13, 0.15)), 0.04)
    eyes = ellipsoid(m, (0.17, -0.315, 0.50), (0.105, 0.09, 0.105))
    beak = ellipsoid(tilt(x, (0, -0.41, 0.40), 0.35), (0, 0, 0), (0.055, 0.08, 0.12))
    inner, middle, outer = (ellipsoid(m, (a, b, -0.615), (0.05, 0.11, 0.05)) for a, b in TOES)
    return body, wings, head, eyes, beak, inner.minimum(middle).minimum(outer), stump_distance(x)


def stump_distance(x: Tensor) -> Tensor:
    """A rounded cylinder with root flares, bark ridges that wander, and rings on the cut face."""
    angle, radius = torch.atan2(x[:, 1], x[:, 0]), x[:, :2].norm(dim=-1)
    flare = 0.10 * smoothstep(-x[:, 2], 0.70, 0.98) * (0.4 + 0.6 * torch.cos(5 * angle + 0.6))
    ridges = torch.sin(24 * angle + 5 * noise(x, 4.0)).abs() + 0.35 * noise(x, 22.0)
    side = radius - (0.52 + flare) - 0.028 * ridges
    top = (x[:, 2] + 0.795).abs() - 0.145 - 0.006 * torch.cos(95 * radius + 3 * noise(x, 3.0))
    return -smooth_union(-side, -top, 0.06)


def owl_colour(x: Tensor) -> Tensor:
    """Paint (n, 3) in sRGB at points x (n, 3) of the surface: each part's own, with soft borders of 0.002."""
    parts = torch.stack(owl_parts(x), -1)
    share = torch.softmax(-parts / 0.002, -1)
    paints = (body_paint, wing_paint, head_paint, eye_paint, horn_paint, horn_paint, stump_paint)
    grain = 0.10 * noise(x, 45.0) + 0.08 * noise(x, 90.0)
    return (share[..., None] * torch.stack([paint(x) for paint in paints], 1)).sum(1) * (1 + grain)[:, None]


def smooth_union(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Minimum of two distances, blended over a seam of width k (quadratic polynomial; Quilez)."""
    return torch.minimum(a, b) - (k - (a - b).abs()).clamp_min(0).square() / (4 * k)


def ellipsoid(x: Tensor, centre: Colour, radii: Colour) -> Tensor:
    """First-order distance (n,) to an axis-aligned ellipsoid (Quilez)."""
    p = x - x.new_tensor(centre)
    p = torch.where(p.abs() < 1e-6, 1e-6, p)  # the quotient has no value at the centre itself
    k0, k1 = (p / x.new_tensor(radii)).norm(dim=-1), (p / x.new_tensor(radii).square()).norm(dim=-1)
    return k0 * (k0 - 1) / k1


def tilt(x: Tensor, pivot: Colour, about_x: float, about_y: float = 0.0) -> Tensor:
    """Coordinates (n, 3) about the pivot in a frame turned by these angles (radians) about the x and the y axis."""
    (ca, sa), (cb, sb) = ((math.cos(a), math.sin(a)) for a in (about_x, about_y))
    turn = x.new_tensor([[cb, 0, -sb], [sa * sb, ca, sa * cb], [ca * sb, -sa, ca * cb]])
    return (x - x.new_tensor(pivot)) @ turn.T


def smoothstep(t: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = ((t - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def noise(x: Tensor, frequency: float) -> Tensor:
    """Smooth value noise (n,) in [-1, 1]: a periodic 32^3 lattice of random numbers, `frequency` cells per unit."""
    p = x * frequency
    cell = p.floor()
    t = p - cell
    tx, ty, tz = (t * t * (3 - 2 * t)).unbind(-1)
    low, high = cell.long() & 31, (cell.long() + 1) & 31
    xs, ys, zs = ((low[:, axis], high[:, axis]) for axis in range(3))
    edges = [[torch.lerp(LATTICE[i, j, zs[0]], LATTICE[i, j, zs[1]], tz) for j in ys] for i in xs]
    left, right = (torch.lerp(a, b, ty) for a, b in edges)
    return torch.lerp(left, right, tx)


def scales(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlapping roof tiles on a chart (u along a row, v down the rows, one tile per unit).

    Returns for each point the relief in [0, 1], continuous, and of the tile on top: the distance to its free edge, the
    offset from its axis in [-0.5, 0.5] and a random tint in [0, 1). Tiles of the upper row lie over those below.
    """
    row = v.floor()
    height, edge, across, tint = (torch.zeros_like(v) for _ in range(4))
    for r in (row + 1, row, row - 1):
        shifted = u + 0.5 * (r % 2)
        offset = shifted - shifted.floor() - 0.5
        inside = r + 0.6 + 0.5 * (1 - 4 * offset.square()) - v
        height = torch.lerp(height, 1 - 0.6 * inside, smoothstep(inside, 0.0, 0.2))
        hashed = (torch.sin(12.9898 * shifted.floor() + 78.233 * r) * 437.585).frac().abs()
        on_top = inside > 0
        edge, across, tint = (torch.where(on_top, a, b) for a, b in ((inside, edge), (offset, across), (hashed, tint)))
    return height, edge, across, tint


def body_chart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Feathers of the body: 18 to a turn, rows 0.115 apart."""
    return torch.atan2(x[:, 0], -x[:, 1]) * (18 / (2 * math.pi)), (0.5 - x[:, 2]) / 0.115


def wing_chart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Feathers of the wings: narrower and longer down the wing."""
    return (x[:, 1] - 0.35 * x[:, 2]) / 0.105, (0.5 - x[:, 2]) / 0.15


def eye_chart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Polar coordinates about the nearer eye, seen from the front: radius and angle."""
    dx, dz = x[:, 0].abs() - 0.175, x[:, 2] - 0.50
    return (dx.square() + dz.square()).sqrt(), torch.atan2(dz, dx)


def mix(a: Tensor | Colour, b: Tensor | Colour, t: Tensor) -> Tensor:
    """From colour a to colour b (each a tuple or (n, 3)) by t (n,)."""
    a, b = (torch.as_tensor(c, dtype=t.dtype) for c in (a, b))
    return a + (b - a) * t[:, None]


def body_paint(x: Tensor) -> Tensor:
    """Cream breast and russet back; each feather dark-rimmed, with a dark shaft and its own tint."""
    _, edge, across, tint = scales(*body_chart(x))
    back = smoothstep(x[:, 1] + 0.10 * noise(x, 6.0), -0.12, 0.05)
    ground = mix(mix(CREAM, RUST, 0.45 * tint), mix(BROWN, RUST, tint), back)
    rim = 1 - smoothstep(edge + 0.05 * noise(x, 30.0), 0.10, 0.22)
    chevron = smoothstep(torch.cos(2 * math.pi * (1.6 * edge + 1.2 * across.abs())), 0.55, 0.9)
    return mix(ground, INK, 0.85 * torch.maximum(rim, 0.8 * chevron))


def wing_paint(x: Tensor) -> Tensor:
    """Dark brown quills with light bars across and rust tips."""
    _, edge, across, tint = scales(*wing_chart(x))
    bars = smoothstep(torch.sin(24 * edge + 4 * noise(x, 8.0)), 0.2, 0.7)
    ground = mix(mix(BROWN, RUST, 0.7 * tint), CREAM, 0.75 * bars * smoothstep(across.abs(), 0.08, 0.14))
    return mix(ground, INK, 0.9 * (1 - smoothstep(edge, 0.06, 0.16)))


def head_paint(x: Tensor) -> Tensor:
    """Mottled brown, with a pale disc about each eye, rayed and ringed with dark."""
    radius, angle = eye_chart(x)
    mottle = smoothstep(noise(x, 24.0) + 0.6 * noise(x, 48.0), -0.2, 0.5)
    crown = mix(mix(INK, BROWN, mottle), mix(RUST, CREAM, mottle), smoothstep(noise(x, 11.0), -0.1, 0.5))
    rays = mix(CREAM, RUST, 0.8 * smoothstep(torch.cos(22 * angle) + 0.8 * noise(x, 25.0), 0.0, 0.8))
    disc = mix(mix(INK, rays, smoothstep(radius, 0.115, 0.13)), INK, smoothstep(radius, 0.185, 0.195))
    return mix(crown, disc, (1 - smoothstep(radius, 0.215, 0.225)) * smoothstep(-x[:, 1], 0.15, 0.2))


def eye_paint(x: Tensor) -> Tensor:
    """A black pupil in a golden iris with fine rays."""
    radius, angle = eye_chart(x)
    iris = mix(GOLD, RUST, 0.6 * smoothstep(torch.cos(17 * angle + 6 * noise(x, 20.0)), 0.0, 0.6))
    return mix(INK, iris, smoothstep(radius, 0.048, 0.054) * (1 - smoothstep(radius, 0.092, 0.098)))


def horn_paint(x: Tensor) -> Tensor:
    """Slate horn, mottled; beak and toes."""
    return mix(SLATE, CREAM, 0.4 * smoothstep(noise(x, 30.0), -0.2, 0.6))


def stump_paint(x: Tensor) -> Tensor:
    """Furrowed bark with moss in patches, growth rings on the cut faces."""
    radius = x[:, :2].norm(dim=-1)
    furrows = noise(x * x.new_tensor([1, 1, 0.3]), 30.0) + 0.5 * noise(x, 60.0)
    bark = mix(BARK, WOOD, 0.7 * smoothstep(furrows, -0.3, 0.8))
    mossy = mix(bark, MOSS, 0.9 * smoothstep(noise(x, 5.0) + 0.5 * noise(x, 20.0), 0.1, 0.4))
    rings = mix(WOOD, BROWN, smoothstep(torch.cos(95 * radius + 3 * noise(x, 3.0)), 0.0, 0.8))
    face = smoothstep((x[:, 2] + 0.795).abs(), 0.130, 0.140) * (1 - smoothstep(radius, 0.47, 0.50))
    return mix(mossy, rings, face)
