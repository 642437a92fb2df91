"""Queries around a cloud, each with the nearest cloud point as its target (Ma et al. 2021, Neural-Pull, section 3).

q = p + N(0, (factor u^closeness sigma_p)^2) with sigma_p the distance from p to its k-th neighbour, so queries are
dense where the cloud is. u is a random number in 0..1 for each query. In the paper closeness is 0; more of it brings
queries of all scales closer to points that are exact, which tell most right there: farther off, a query's perpendicular
does not meet the surface at its nearest point. A share of `space` queries covers the rest of the box, where nothing
else fixes the sign.

Each query keeps its p, too, as a row of the cloud: normals and weights are those of p. In a noisy cloud the nearest
point is the one whose noise points towards the query, while p knows nothing of where the query is: on average over all
p, the surface lies in their middle.
"""

import json
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from pointrecon.survey import principal_axes

EDGE = 0.999  # queries stay just inside the box [-1, 1]^3 that the field is defined on
SPACE_SPREAD = 0.1  # standard deviation of the space queries that surround the cloud
SMALLEST_SIGMA = 1e-5  # more than k coincident points must not put a query exactly on its own target
# Neighbours of a point that give its plane, at least. It counts in full while the variance across it is less than EVEN
# of the next one, and not at all from BENT on, where it may lie any way: at the tip of a finger. Nor does it where that
# next one is as small beside the largest: points of one scan line tell no plane.
PLANE, EVEN, BENT = 12, 0.2, 0.4
LINE, BROAD = 0.02, 0.06
BESIDE = 8  # power of the cosine
CHUNK = 100_000  # rows per nearest-neighbour search, which bounds its memory


class Queries(NamedTuple):
    """n queries, their nearest cloud points, the cloud points they were drawn around (the nearest ones again where they
    were drawn from all of space), and which were; those near the surface come first."""

    x: Float[Tensor, "n 3"]
    nearest: Float[Tensor, "n 3"]
    origin: Float[Tensor, "n 3"]
    in_space: Bool[Tensor, " n"]


class QuerySampler:
    """Batches of queries from a pool that is drawn once and renewed piece by piece.

    points: (N, 3) in field space, N >= 2. neighbours: k of sigma, at most N - 1. factor: multiplies sigma.
    closeness: so does a random number in 0..1 to this power.
    space_share: fraction of every batch that is drawn from all of space. pool: queries held, 32 bytes each.
    The generator belongs to the sampler from here on; equal generators give equal batches.
    """

    def __init__(
        self,
        points: ArrayLike,
        generator: np.random.Generator,
        neighbours: int = 50,
        factor: float = 1.0,
        closeness: float = 0.0,
        space_share: float = 0.1,
        pool: int = 500_000,
    ) -> None:
        self.points = np.ascontiguousarray(points, dtype=np.float32)
        if self.points.ndim != 2 or self.points.shape[1] != 3 or len(self.points) < 2:
            raise ValueError(f"points of shape {self.points.shape}, not (N >= 2, 3)")
        if not 0 <= space_share < 1:
            raise ValueError(f"space_share {space_share} is not in [0, 1)")
        self.generator = generator
        self.neighbours = min(neighbours, len(self.points) - 1)
        self.factor, self.closeness = factor, closeness
        self.space_share = space_share
        # Midpoint splits answer queries far from the cloud four times faster than the default median splits.
        self.tree = cKDTree(self.points, balanced_tree=False, compact_nodes=False)
        self._ordered = self.points[self.tree.indices]  # neighbours in space are neighbours in memory
        self._sigma = np.full(len(self.points), np.nan, dtype=np.float32)  # of _ordered, filled in as points are drawn
        self._plane = np.full((len(self.points), 5), np.nan, dtype=np.float32)  # of points, likewise
        space = round(pool * space_share)
        self._near = _Pool(pool - space)
        self._space = _Pool(space)
        self.refresh(pool)

    def batch(self, n: int) -> Queries:
        """n queries from the pool, with replacement."""
        return self.draw(n)[0]

    def draw(self, n: int) -> tuple[Queries, Int[Tensor, " n"]]:
        """A `batch`, and the rows of its origins among `points`."""
        space = round(n * self.space_share) if len(self._space.rows) else 0
        near_rows = self.generator.integers(len(self._near.rows), size=n - space)
        space_rows = self.generator.integers(max(len(self._space.rows), 1), size=space)
        rows = torch.from_numpy(np.concatenate([self._near.rows[near_rows], self._space.rows[space_rows]]))
        origins = np.concatenate([self._near.origins[near_rows], self._space.origins[space_rows]])
        x, nearest = (part.contiguous() for part in rows.split(3, dim=1))
        queries = Queries(x, nearest, torch.from_numpy(self.points[origins]), torch.arange(n) >= n - space)
        return queries, torch.from_numpy(origins)

    def facing(self, x: Float[Tensor, "n 3"], rows: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What queries in space count, whose nearest points are the cloud's in `rows`: 1, but less, down to 0, beside
        the plane through the neighbours of the nearest point, as far as these lie in one.

        Where a part of a surface is missing, the nearest points lie on its rim. Pulled there from all sides, a field
        closes the hole by a flat sheet; left alone, it goes on as it comes. The weight in the plane's terms is a power
        of the cosine between its normal and the way to x.
        """
        plane = torch.from_numpy(self._plane_of(rows.numpy()))
        apart = x - torch.from_numpy(self.points[rows.numpy()])
        cosine = torch.cosine_similarity(apart, plane[:, :3], dim=1).abs()
        return 1 - plane[:, 3] * (1 - cosine**BESIDE)

    def width(self, rows: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """How far the neighbours reach that give the planes of the cloud's points in `rows`."""
        return torch.from_numpy(self._plane_of(rows.numpy())[:, 4])

    def noise(self, n: int) -> Float[Tensor, "n 3"]:
        """Normal random numbers that a resumed run draws again."""
        return torch.from_numpy(self.generator.standard_normal((n, 3), dtype=np.float32))

    def refresh(self, count: int = CHUNK // 2) -> None:
        """Draw the `count` oldest queries of the pool anew, at most all of them; space queries in proportion."""
        total = len(self._near.rows) + len(self._space.rows)
        count = min(count, total)
        space = round(count * len(self._space.rows) / total)
        for start in range(0, count - space, CHUNK):
            queries, origins = self._near_surface(min(CHUNK, count - space - start))
            self._near.replace(queries, self.points[self._nearest(queries)], origins)
        for start in range(0, space, CHUNK):
            queries = self._in_space(min(CHUNK, space - start))
            nearest = self._nearest(queries)
            self._space.replace(queries, self.points[nearest], nearest)

    def state_dict(self) -> dict[str, Tensor | str | int]:
        """All that decides the batches to come, in types that torch.load(weights_only=True) accepts."""
        return {
            "generator": json.dumps(self.generator.bit_generator.state),
            "points": len(self.points),
            **self._near.state("near"),
            **self._space.state("space"),
        }

    def load_state_dict(self, state: dict[str, Tensor | str | int]) -> None:
        """Continue where `state_dict` was taken. The sampler must have been built with the same arguments.

        Raises ValueError where the cloud or the pool is of another size.
        """
        if state.get("points") != len(self.points):
            raise ValueError(f"queries around {state.get('points', 'other')} points, not {len(self.points)}")
        self._near.load(state, "near")
        self._space.load(state, "space")
        self.generator.bit_generator.state = json.loads(str(state["generator"]))

    def _near_surface(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Queries and the rows of the points they are drawn around."""
        rows = np.sort(self.generator.integers(len(self.points), size=n))  # searches in spatial order are 3x faster
        noise = self.generator.standard_normal((n, 3), dtype=np.float32)
        spread = self.factor * self._sigma_of(rows)
        if self.closeness:
            spread = spread * self.generator.random(n, dtype=np.float32) ** np.float32(self.closeness)
        queries = self._ordered[rows] + noise * np.maximum(spread, SMALLEST_SIGMA)[:, None]
        return _clip(queries), self.tree.indices[rows]

    def _in_space(self, n: int) -> NDArray[np.float32]:
        """Half uniform in the box, half around the cloud."""
        uniform = self.generator.uniform(-1.0, 1.0, (n // 2, 3)).astype(np.float32)
        rows = np.sort(self.generator.integers(len(self.points), size=n - n // 2))
        noise = self.generator.standard_normal((n - n // 2, 3), dtype=np.float32)
        return _clip(np.concatenate([uniform, self._ordered[rows] + SPACE_SPREAD * noise]))

    def _sigma_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        missing = np.unique(rows[np.isnan(self._sigma[rows])])
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            # A list of one k returns that neighbour alone, not the k - 1 nearer ones: memory stays flat in k.
            distances, _ = self.tree.query(
                self._ordered[part], k=[self.neighbours + 1], workers=torch.get_num_threads()
            )
            self._sigma[part] = np.maximum(distances[:, 0], SMALLEST_SIGMA)
        return self._sigma[rows]

    def _plane_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, 5): unit normals, of either sign, of planes through the neighbours of points, how flat these lie, and how
        far they reach."""
        missing = np.unique(rows[np.isnan(self._plane[rows, 0])])
        neighbours = min(max(self.neighbours, PLANE), len(self.points) - 1)
        for part in np.split(missing, range(CHUNK // PLANE, len(missing), CHUNK // PLANE)):
            distance, index = self.tree.query(self.points[part], k=neighbours + 1, workers=torch.get_num_threads())
            variances, axes = principal_axes(self.points[index])
            across, along = (variances[:, :2] / variances[:, 1:].clip(1e-30)).T
            self._plane[part, :3] = axes[:, :, 0]
            flat, broad = (BENT - across) / (BENT - EVEN), (along - LINE) / (BROAD - LINE)
            self._plane[part, 3] = flat.clip(0, 1) * broad.clip(0, 1)
            self._plane[part, 4] = distance[:, -1]
        return self._plane[rows]

    def _nearest(self, queries: NDArray[np.float32]) -> NDArray[np.int64]:
        """Rows of the nearest points."""
        return self.tree.query(queries, workers=torch.get_num_threads())[1]


class _Pool:
    """A ring of rows (size, 6), query and nearest point, and origins (size,), rows of the cloud: `replace` overwrites
    the oldest."""

    def __init__(self, size: int) -> None:
        self.rows = np.zeros((size, 6), dtype=np.float32)
        self.origins = np.zeros(size, dtype=np.int64)
        self.oldest = 0

    def replace(self, x: NDArray[np.float32], nearest: NDArray[np.float32], origins: NDArray[np.int64]) -> None:
        index = (self.oldest + np.arange(len(x))) % len(self.rows)
        self.rows[index] = np.concatenate([x, nearest], axis=1)
        self.origins[index] = origins
        self.oldest = int(index[-1] + 1) % len(self.rows)

    def state(self, name: str) -> dict[str, Tensor | str | int]:
        return {
            f"{name}_rows": torch.from_numpy(self.rows.copy()),
            f"{name}_origins": torch.from_numpy(self.origins.copy()),
            f"{name}_oldest": self.oldest,
        }

    def load(self, state: dict[str, Tensor | str | int], name: str) -> None:
        rows = torch.as_tensor(state[f"{name}_rows"]).cpu().numpy()
        if rows.shape != self.rows.shape:
            raise ValueError(f"a pool of {len(rows)} {name} queries, not {len(self.rows)}")
        self.rows = rows.copy()
        self.origins = torch.as_tensor(state[f"{name}_origins"]).cpu().numpy().copy()
        self.oldest = int(state[f"{name}_oldest"])


def _clip(queries: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.clip(queries, -EDGE, EDGE).astype(np.float32)
