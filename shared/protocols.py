"""The figures of the papers that reconstructions are compared with, each by the protocol it was published with.

In `shared.metrics` distances run to the other surface's triangles. Here, as in the papers, they run from samples of one
surface to the nearest sample of the other. That puts a floor under every figure: two samplings of the same surface, n
points on an area A, are sqrt(A / n) / 2 apart on average. Figures with different numbers of samples do not compare.

A *unit cube* is that of the truth: distances are divided by the longest edge of its bounding box, and the
reconstruction is measured where it is, not moved into a cube of its own. Tables often print figures times 100 and say
so in their captions; the functions return them plain.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from shared.errors import UserError
from shared.mesh import Mesh
from shared.metrics import (
    Distances,
    Points,
    accuracy,
    chamfer_l1,
    chamfer_l2,
    completeness,
    f_score,
    hausdorff,
    normal_consistency,
    sample_surface,
)
from shared.pointcloud import PointCloud

# Points drawn from each surface.
STANDARD = 100_000  # Neural-Pull on ShapeNet, level set alignment on the Stanford scans, Occupancy Networks
SPARSE = 10_000  # Points2Surf, and Neural-Pull on its data sets
DENSE = 1_000_000  # SRB, and level set alignment on whole scenes
MATCHED = 2048  # earth mover's distance
# The threshold of Neural-Pull's F-score, in the unit cube.
MU = 0.002


@dataclass(frozen=True, eq=False)
class Samples:
    """Points of a surface in a search tree, and their unit normals (n, 3), None for a cloud without."""

    tree: cKDTree
    normals: Float64[np.ndarray, "n 3"] | None


@dataclass(frozen=True, eq=False)
class Match:
    """Distances (n,) from samples of one surface to the nearest of the other, and the unit normals (n, 3) at both ends.

    The normals are None where the truth is a cloud without.
    """

    distances: Float64[np.ndarray, " n"]
    normals: tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]] | None


@dataclass(frozen=True, eq=False)
class Pair:
    """A reconstruction and the truth, in the same frame and units. All figures of a pair share its samples.

    A mesh is sampled uniformly over its area. A cloud is taken whole, as the releases do that come with one. Measuring
    raises UserError if a surface has no area.
    """

    mesh: Mesh
    truth: Mesh | PointCloud
    seed: int = 0
    _matches: dict[int, tuple[Match, Match]] = field(default_factory=dict, init=False, repr=False)

    def match(self, count: int) -> tuple[Match, Match]:
        """From the reconstruction to the truth and back, with `count` samples of each mesh; distances as they are."""
        if count not in self._matches:
            mesh, truth = _sampled(*sample_surface(self.mesh, count, self.seed)), _sampled(*self._true_samples(count))
            self._matches[count] = _nearest(mesh, truth), _nearest(truth, mesh)
        return self._matches[count]

    def unit_distances(self, count: int) -> tuple[Distances, Distances]:
        """The distances of `match` in the unit cube."""
        there, back = self.match(count)
        return there.distances / self.longest_edge, back.distances / self.longest_edge

    def draw(self, count: int) -> tuple[Points, Points]:
        """As many points of either: (count, 3) each. Raises UserError for a cloud with fewer."""
        points, truth = sample_surface(self.mesh, count, self.seed)[0], self._true_samples(count)[0]
        if len(truth) < count:
            raise UserError(f"truth: the cloud has {len(truth)} points, too few to draw {count}; give a mesh")
        # Of a mesh this is all of them, in another order.
        return points, np.random.default_rng(self.seed + 1).permutation(truth)[:count]

    @property
    def longest_edge(self) -> float:
        """Of the truth's bounding box: the length of the unit cube's edge."""
        truth = self.truth
        points = truth.points if isinstance(truth, PointCloud) else truth.vertices[np.unique(truth.faces)]
        return float(np.ptp(points, axis=0).max())

    def _true_samples(self, count: int) -> tuple[Points, NDArray[np.float64] | None]:
        if isinstance(self.truth, PointCloud):
            return self.truth.points, self.truth.normals
        return sample_surface(self.truth, count, self.seed + 1)


def l1_cd(pair: Pair) -> float:
    """L1-CD of Neural-Pull (Ma et al. 2021, section 4; table 6) and level set alignment (Ma et al. 2023, table 2).

    100,000 points of each, unit cube; half the sum of both mean distances, not squared. So the paper; Neural-Pull's
    released code draws a million points of the reconstruction on ShapeNet.
    """
    return chamfer_l1(*pair.unit_distances(STANDARD))


def l1_cd_dense(pair: Pair) -> float:
    """L1-CD of level set alignment on the SIREN clouds and the 3D Scene data (Ma et al. 2023, tables 1 and 3).

    As `l1_cd` with a million points of each. The paper names no unit for these; here it is the unit cube.
    """
    return chamfer_l1(*pair.unit_distances(DENSE))


def l2_cd(pair: Pair) -> float:
    """L2-CD of Neural-Pull on ShapeNet (Ma et al. 2021, table 2, printed times 100).

    100,000 points of each, unit cube; half the sum of both mean squared distances.
    """
    return chamfer_l2(*pair.unit_distances(STANDARD))


def l2_cd_sparse(pair: Pair) -> float:
    """L2-CD of Neural-Pull on ABC and FAMOUS (Ma et al. 2021, tables 1 and 8 to 13, printed times 100).

    As `l2_cd` with 10,000 points of each, the number of Points2Surf, whose own figure is another one.
    """
    return chamfer_l2(*pair.unit_distances(SPARSE))


def true_normal_consistency(pair: Pair) -> float:
    """Normal consistency as papers define it (Mescheder et al. 2019, section 4; Neural-Pull, table 3), 0..1.

    100,000 points of each; mean of |n . n'| over the samples and their nearest ones, averaged over both directions.
    """
    there, back = pair.match(STANDARD)
    return normal_consistency(_cosines(there), _cosines(back))


def released_normal_consistency(pair: Pair) -> float:
    """Normal consistency as Neural-Pull's released code computes it: only for comparison with its tables, 0..1.

    As `true_normal_consistency` with |.| taken of each component before the sum: |n_x n'_x| + |n_y n'_y| + |n_z n'_z|.
    That is never less than |n . n'|, and can be 1 for normals at right angles.
    """
    there, back = pair.match(STANDARD)
    return normal_consistency(_component_products(there), _component_products(back))


def normal_consistency_dense(pair: Pair) -> float:
    """Normal consistency of level set alignment on the 3D Scene data (Ma et al. 2023, table 3), 0..1.

    As `true_normal_consistency` with a million points of each.
    """
    there, back = pair.match(DENSE)
    return normal_consistency(_cosines(there), _cosines(back))


def f_score_mu(pair: Pair) -> float:
    """F-score of Neural-Pull (Ma et al. 2021, table 4) at mu = 0.002 in the unit cube, 0..1.

    100,000 points of each; harmonic mean of the shares that lie within mu of the other's samples. With the floor of
    sampling, two samplings of the same area A only reach about 1 - exp(-pi mu^2 n / A).
    """
    return f_score(*pair.unit_distances(STANDARD), MU)


def f_score_2mu(pair: Pair) -> float:
    """F-score of Neural-Pull (Ma et al. 2021, table 5): as `f_score_mu` at 2 mu = 0.004."""
    return f_score(*pair.unit_distances(STANDARD), 2 * MU)


def emd(pair: Pair) -> float:
    """Earth mover's distance of Neural-Pull (Ma et al. 2021, section 4.2; table 7, printed times 100).

    2,048 points of each, unit cube; mean distance, not squared, over the one-to-one assignment that makes it least.
    The assignment is exact; approximate ones, usual where tables were made on a GPU, are never lower. Raises UserError
    for a cloud with fewer points.
    """
    points, truth = pair.draw(MATCHED)
    distances = cdist(points, truth)
    return float(distances[linear_sum_assignment(distances)].mean()) / pair.longest_edge


def points2surf_chamfer(pair: Pair) -> float:
    """Chamfer distance of Points2Surf (Erler et al. 2020, table 1, printed times 100).

    10,000 points of each, unit cube; the sum, not half of it, of both mean distances, not squared. So says the released
    evaluation, apart from the division by 10,000 that it forgets and the table has. It also rejects samples that lie
    close to each other, for figures some 5 % higher by its authors' word; here all samples count.
    """
    there, back = pair.unit_distances(SPARSE)
    return accuracy(there) + completeness(back)


def points2surf_hausdorff(pair: Pair) -> float:
    """Hausdorff distance of Points2Surf's released evaluation (Erler et al. 2020).

    10,000 points of each, unit cube; the larger of both directed maxima.
    """
    return hausdorff(*pair.unit_distances(SPARSE))


def srb_chamfer(pair: Pair) -> float:
    """Chamfer distance on the surface reconstruction benchmark of Williams et al. 2019, as DiGS measures it.

    A million points of the reconstruction against the whole cloud of the truth (of a mesh: a million points), in the
    units of the scan; half the sum of both mean distances, not squared (Ben-Shabat et al. 2022, table 1).
    """
    there, back = pair.match(DENSE)
    return chamfer_l1(there.distances, back.distances)


def srb_hausdorff(pair: Pair) -> float:
    """Hausdorff distance on the same benchmark, with the points of `srb_chamfer`: the larger directed maximum."""
    there, back = pair.match(DENSE)
    return hausdorff(there.distances, back.distances)


def onet_chamfer_l1(pair: Pair) -> float:
    """Chamfer-L1 of Occupancy Networks (Mescheder et al. 2019, section 4).

    100,000 points of each; half the sum of both mean distances, not squared, in tenths of the longest edge of the
    truth's bounding box: ten times `l1_cd`.
    """
    return 10 * l1_cd(pair)


FIGURES: dict[str, Callable[[Pair], float]] = {
    "neural_pull.l1_cd": l1_cd,
    "neural_pull.l2_cd": l2_cd,
    "neural_pull.l2_cd_10k": l2_cd_sparse,
    "neural_pull.normal_consistency": true_normal_consistency,
    "neural_pull.normal_consistency_released": released_normal_consistency,
    "neural_pull.f_score_mu": f_score_mu,
    "neural_pull.f_score_2mu": f_score_2mu,
    "neural_pull.emd": emd,
    "level_set_alignment.l1_cd": l1_cd,
    "level_set_alignment.l1_cd_1m": l1_cd_dense,
    "level_set_alignment.normal_consistency": true_normal_consistency,
    "level_set_alignment.normal_consistency_1m": normal_consistency_dense,
    "points2surf.chamfer": points2surf_chamfer,
    "points2surf.hausdorff": points2surf_hausdorff,
    "srb.chamfer": srb_chamfer,
    "srb.hausdorff": srb_hausdorff,
    "occupancy_networks.chamfer_l1": onet_chamfer_l1,
    "occupancy_networks.normal_consistency": true_normal_consistency,
}
OF_NORMALS = (true_normal_consistency, released_normal_consistency, normal_consistency_dense)
# In a few words: unit, and how many points of a mesh.
NOTES: dict[Callable[[Pair], float], str] = {
    l1_cd: f"unit cube, {STANDARD:,} points",
    l1_cd_dense: f"unit cube, {DENSE:,} points",
    l2_cd: f"squared, unit cube, {STANDARD:,} points",
    l2_cd_sparse: f"squared, unit cube, {SPARSE:,} points",
    true_normal_consistency: f"0..1, {STANDARD:,} points",
    released_normal_consistency: f"0..1, as the released code has it, {STANDARD:,} points",
    normal_consistency_dense: f"0..1, {DENSE:,} points",
    f_score_mu: f"0..1, within {MU:g} of the unit cube, {STANDARD:,} points",
    f_score_2mu: f"0..1, within {2 * MU:g} of the unit cube, {STANDARD:,} points",
    emd: f"unit cube, {MATCHED:,} points",
    points2surf_chamfer: f"a sum, unit cube, {SPARSE:,} points",
    points2surf_hausdorff: f"unit cube, {SPARSE:,} points",
    srb_chamfer: f"in the input's units, {DENSE:,} points",
    srb_hausdorff: f"in the input's units, {DENSE:,} points",
    onet_chamfer_l1: f"tenths of the longest edge, {STANDARD:,} points",
}


def published(mesh: Mesh, truth: Mesh | PointCloud, seed: int = 0) -> dict[str, float]:
    """All figures of a reconstruction by the name of the paper; each number of samples is drawn and matched once.

    Those of `missing` are left out. Raises UserError if a mesh has no area.
    """
    pair, left_out = Pair(mesh, truth, seed), missing(truth)
    return {name: figure(pair) for name, figure in FIGURES.items() if name not in left_out}


def missing(truth: Mesh | PointCloud) -> dict[str, str]:
    """The figures that a truth cannot give, and why: of a cloud those of normals where it has none, the earth mover's
    distance where it is too small."""
    if not isinstance(truth, PointCloud):
        return {}
    why = dict.fromkeys(OF_NORMALS, "it has no normals") if truth.normals is None else {}
    if len(truth) < MATCHED:
        why[emd] = f"it has {len(truth):,} points, fewer than {MATCHED:,}"
    return {name: why[figure] for name, figure in FIGURES.items() if figure in why}


def note(name: str) -> str:
    """What a figure of `published` is measured in; empty for another name."""
    return NOTES[FIGURES[name]] if name in FIGURES else ""


def _sampled(points: Points, normals: NDArray[np.float64] | None) -> Samples:
    """A tree of large leaves and loose boxes: soon built, and faster where surfaces are far from each other."""
    return Samples(cKDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False), normals)


def _nearest(own: Samples, other: Samples) -> Match:
    """From each sample to the nearest one of the other surface, in the order of their own tree.

    A million queries in random order would miss the cache at every step; in this one they are three times as fast.
    """
    order = own.tree.indices
    distances, nearest = other.tree.query(own.tree.data[order], workers=-1)
    if own.normals is None or other.normals is None:
        return Match(distances, None)
    return Match(distances, (own.normals[order], other.normals[nearest]))


def _products(match: Match) -> NDArray[np.float64]:
    """Products (n, 3) of the normals' components at both ends."""
    if match.normals is None:
        raise UserError("truth: the cloud has no normals to compare; give one that has, or a mesh")
    return match.normals[0] * match.normals[1]


def _cosines(match: Match) -> NDArray[np.float64]:
    return np.abs(_products(match).sum(axis=1))


def _component_products(match: Match) -> NDArray[np.float64]:
    return np.abs(_products(match)).sum(axis=1)
