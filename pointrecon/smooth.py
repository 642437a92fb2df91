"""Points moved onto the surface that their neighbours tell of."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def onto_planes(points: Float[NDArray, "m 3"], groups: Float[NDArray, "m k 3"]) -> Float[NDArray, "m 3"]:
    """Each point moved perpendicularly onto the plane through its group, in the sense of least squares (Hoppe 1992)."""
    centre = groups.mean(axis=1)
    apart = groups - centre[:, None]
    _, axes = np.linalg.eigh(np.einsum("mka,mkb->mab", apart, apart))
    normal = axes[:, :, 0]
    return points - ((points - centre) * normal).sum(axis=1, keepdims=True) * normal
