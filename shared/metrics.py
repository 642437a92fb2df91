"""The figures by which surfaces and images are judged, one function per figure, its protocol in the docstring.

Surfaces are compared in the units of their coordinates. Distances run from uniform samples of one surface to the
nearest point of the other's triangles, not to its samples, so the sampling density puts no floor under them.
"""

from dataclasses import dataclass

import igl
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity

from shared.errors import UserError
from shared.mesh import Mesh, face_cross

Points = NDArray[np.float64]
Distances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Distances (n,) from points on one surface to the other, and |cosine| (n,) between the normals at both ends."""

    distances: Distances
    cosines: NDArray[np.float64] | None


def sample_surface(mesh: Mesh, n: int, seed: int) -> tuple[Points, NDArray[np.float64]]:
    """n points distributed uniformly over the area, and the unit normals of their faces: (n, 3) each.

    Square-root barycentric sampling (Osada et al. 2002, eq. 1). Raises UserError if the mesh has no area.
    """
    cross = face_cross(mesh)
    areas = np.linalg.norm(cross, axis=1)
    if not areas.sum() > 0:
        raise UserError(
            "mesh: the surface is empty, so there is nothing to measure; train for longer or check the file"
        )
    rng = np.random.default_rng(seed)
    face = rng.choice(len(areas), size=n, p=areas / areas.sum())
    root, along = np.sqrt(rng.random((n, 1))), rng.random((n, 1))
    a, b, c = (mesh.vertices[mesh.faces[face, corner]] for corner in range(3))
    return (1 - root) * a + root * (1 - along) * b + root * along * c, cross[face] / areas[face, None]


def point_to_mesh(points: Points, mesh: Mesh) -> tuple[Distances, NDArray[np.int64]]:
    """Exact distance from each point (n, 3) to the closest triangle, and that triangle's index: (n,) each."""
    if not len(mesh.faces):
        raise UserError("mesh: it has no faces, so nothing has a distance to it; train for longer or check the file")
    points, vertices = (np.ascontiguousarray(x, np.float64) for x in (points, mesh.vertices))
    # libigl loses digits far from the origin, where its squared distances are differences of large numbers.
    centre = vertices.mean(axis=0)
    faces = np.ascontiguousarray(mesh.faces, np.int64)
    squared, face, _ = igl.point_mesh_squared_distance(points - centre, vertices - centre, faces)
    return np.sqrt(squared), np.asarray(face, np.int64)


def accuracy(to_truth: Distances) -> float:
    """Mean distance from the reconstruction to the truth."""
    return float(to_truth.mean())


def completeness(to_mesh: Distances) -> float:
    """Mean distance from the truth to the reconstruction."""
    return float(to_mesh.mean())


def chamfer_l1(to_truth: Distances, to_mesh: Distances) -> float:
    """(accuracy + completeness) / 2 of unsquared distances, as in DTU and Occupancy Networks."""
    return (accuracy(to_truth) + completeness(to_mesh)) / 2


def chamfer_l2(to_truth: Distances, to_mesh: Distances) -> float:
    """Half the sum of the two mean squared distances; in squared units."""
    return float(np.square(to_truth).mean() + np.square(to_mesh).mean()) / 2


def hausdorff(to_truth: Distances, to_mesh: Distances) -> float:
    """The larger of the two directed maxima over the samples."""
    return float(max(to_truth.max(), to_mesh.max()))


def precision(to_truth: Distances, threshold: float) -> float:
    """Share of the reconstruction within `threshold` of the truth, 0..1."""
    return float((to_truth <= threshold).mean())


def recall(to_mesh: Distances, threshold: float) -> float:
    """Share of the truth within `threshold` of the reconstruction, 0..1."""
    return float((to_mesh <= threshold).mean())


def f_score(to_truth: Distances, to_mesh: Distances, threshold: float) -> float:
    """Harmonic mean of precision and recall (Knapitsch et al. 2017), 0 if both are 0."""
    p, r = precision(to_truth, threshold), recall(to_mesh, threshold)
    return 2 * p * r / (p + r) if p + r > 0 else 0.0


def normal_consistency(to_truth: NDArray[np.float64], to_mesh: NDArray[np.float64]) -> float:
    """Mean |n . n'| over samples and their closest points, averaged over both directions (Mescheder et al. 2019)."""
    return float(to_truth.mean() + to_mesh.mean()) / 2


def points_to_surface(to_mesh: Distances) -> dict[str, float]:
    """Distribution of the distances from a cloud's points to the surface: mean, median, 95th percentile, max."""
    summary = {"mean": to_mesh.mean(), "median": np.median(to_mesh), "p95": np.quantile(to_mesh, 0.95)}
    return {name: float(value) for name, value in (summary | {"max": to_mesh.max()}).items()}


def compare_meshes(
    mesh: Mesh, truth: Mesh, samples: int = 100_000, threshold: float = 0.01, seed: int = 0
) -> dict[str, float]:
    """All figures between two surfaces, from `samples` points on each; threshold in the meshes' own units.

    Keys: chamfer_l1, chamfer_l2, accuracy, completeness, precision, recall, f_score, normal_consistency, hausdorff, and
    the threshold itself. Raises UserError if either has no area.
    """
    return _figures(_match_mesh(mesh, truth, samples, seed), _match_mesh(truth, mesh, samples, seed + 1), threshold)


def compare_cloud(
    mesh: Mesh,
    points: Points,
    normals: NDArray[np.float64] | None = None,
    samples: int = 100_000,
    threshold: float = 0.01,
    seed: int = 0,
) -> dict[str, float | dict[str, float]]:
    """The figures against a cloud (N, 3): its points to the triangles, samples of the mesh to the nearest point.

    The latter (accuracy, precision and what contains them) cannot fall below the spacing of the cloud.
    `points_to_surface` has no such floor. normal_consistency needs the cloud's `normals` (N, 3).
    """
    samples_at, sample_normals = sample_surface(mesh, samples, seed)
    away, nearest = cKDTree(points).query(samples_at)
    distances, face = point_to_mesh(points, mesh)
    if normals is None:
        to_truth, to_mesh = Matches(away, None), Matches(distances, None)
    else:
        to_truth = Matches(away, _cosines(sample_normals, normals[nearest]))
        to_mesh = Matches(distances, _cosines(normals, face_cross(mesh)[face]))
    return {"points_to_surface": points_to_surface(distances), **_figures(to_truth, to_mesh, threshold)}


def _match_mesh(source: Mesh, target: Mesh, samples: int, seed: int) -> Matches:
    points, normals = sample_surface(source, samples, seed)
    distances, face = point_to_mesh(points, target)
    return Matches(distances, _cosines(normals, face_cross(target)[face]))


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """|cosine| (n,) of the angle between vectors (n, 3); 0 where one of them vanishes."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.abs((a * b).sum(axis=1)) / np.where(lengths > 0, lengths, 1)


def _figures(to_truth: Matches, to_mesh: Matches, threshold: float) -> dict[str, float]:
    there, back = to_truth.distances, to_mesh.distances
    figures = {
        "chamfer_l1": chamfer_l1(there, back),
        "chamfer_l2": chamfer_l2(there, back),
        "accuracy": accuracy(there),
        "completeness": completeness(back),
        "precision": precision(there, threshold),
        "recall": recall(back, threshold),
        "f_score": f_score(there, back, threshold),
        "hausdorff": hausdorff(there, back),
        "threshold": float(threshold),
    }
    if to_truth.cosines is not None and to_mesh.cosines is not None:
        figures["normal_consistency"] = normal_consistency(to_truth.cosines, to_mesh.cosines)
    return figures


def psnr(image: NDArray, truth: NDArray, mask: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images (H, W, 3), uint8 or float in 0..1; infinite for equal images.

    mask (H, W): the squared error is averaged over these pixels only. Raises ValueError if it selects none.
    """
    squared = np.square(_unit_range(image) - _unit_range(truth))
    if mask is not None:
        squared = squared[np.asarray(mask, bool)]
    if not squared.size:
        raise ValueError("the mask selects no pixel")
    error = float(squared.mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(image: NDArray, truth: NDArray) -> float:
    """Structural similarity of images (H, W, 3), uint8 or float in 0..1, averaged over the channels.

    Gaussian window of sigma 1.5 and 11 pixels, population covariance: Wang et al. 2004.
    """
    return float(
        structural_similarity(
            _unit_range(image),
            _unit_range(truth),
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _unit_range(image: NDArray) -> NDArray[np.float64]:
    image = np.asarray(image)
    return image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)
