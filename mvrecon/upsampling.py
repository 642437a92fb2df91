"""NeuS's own sampling: exact where the cached distances are a coarse copy, and many times as dear."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvrecon.sampling import SdfFunction, draw, section_weights

# Samples are drawn in so many rounds, the first with this 1/s.
ROUNDS, FIRST_ROUND = 4, 64.0


@torch.no_grad()
def upsample(
    sdf: SdfFunction,
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    bounds: tuple[Float[Tensor, " r"], Float[Tensor, " r"]],
    counts: tuple[int, int],
    shift: Float[Tensor, "r 1"] | float = 0.5,
) -> Float[Tensor, "r s"]:
    """NeuS's own sampling, every distance asked of the network: sorted distances along the rays.

    `counts` are the samples spread evenly, shifted together on each ray by `shift` in 0..1, and those then drawn in
    four rounds from weights twice as sharp each time (NeuS, section 3.3 and supp. D.1).
    """
    scan, importance = counts
    device, (near, far) = origins.device, (b[:, None] for b in bounds)

    def ask(t: Tensor) -> Tensor:
        return sdf((origins[:, None] + t[..., None] * directions[:, None]).reshape(-1, 3)).reshape(t.shape)

    t = near + (far - near) * (torch.arange(scan, device=device) + shift) / scan
    known = ask(t)
    for turn in range(ROUNDS):
        drawn = importance * (turn + 1) // ROUNDS - importance * turn // ROUNDS
        share = (torch.arange(drawn, device=device) + 0.5) / max(1, drawn)
        new = draw(t, section_weights(t, known, FIRST_ROUND * 2.0**turn) + 1e-5, share.expand(len(t), drawn))
        t, order = torch.cat([t, new], dim=1).sort(dim=1)
        known = torch.cat([known, ask(new)], dim=1).gather(1, order)
    return t
