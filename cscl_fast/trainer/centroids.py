"""Class centroids beyond one batch: running ones, and those over the batches of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.trainer.processes import Processes


def centroids_of_all(
    processes: Processes,
    features: Tensor,  # [B, C, h, w]
    labels: Tensor,  # [B, h, w] int64, or soft [B, K, h, w]
    num_classes: int,
) -> tuple[Tensor, Tensor]:  # centroids [K, C] float32, mass [K] float32
    """`ops.class_centroids` (Eq. 12–13) of the batches of all processes, the same in each.

    Differentiable in the process's own features, as `Processes.sum` is: what is computed from
    the centroids has to be the same in all processes, with the share 1 / count.
    """
    return _of_all(processes, *ops.class_centroids(features, labels, num_classes))


def _of_all(processes: Processes, centroids: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    if not processes.several:
        return centroids, mass
    mass = mass.detach()[..., None]
    total = processes.sum(torch.cat([centroids * mass, mass], dim=-1))
    sums, masses = total[..., :-1], total[..., -1].detach()
    return _mean(sums, masses), masses


def _mean(sums: Tensor, masses: Tensor) -> Tensor:
    """Centroids [..., K, C] from sums weighted by masses [..., K]; 0 where there is no mass."""
    return sums / torch.where(masses > 0, masses, 1.0)[..., None]


def divergence_of_centroids(
    source: Tensor,  # [K, C] float32
    target: Tensor,  # [K, C] float32
    present: Tensor,  # [K] bool: on both sides
    *,
    normalise: str,
) -> Tensor:  # scalar float32, nats
    """L_div (Eq. 13) from centroids; 0 without a class that is present."""
    # A centroid is a one-pixel feature map: one location per class, labelled by its class.
    k = len(present)
    labels = torch.arange(k, device=present.device).masked_fill(~present, 255).view(1, 1, k)
    return ops.symmetric_soft_divergence(
        source.t()[None, :, None],
        labels,
        target.t()[None, :, None],
        torch.diag(present.float()).t()[None, :, None],
        normalise=normalise,
    )


def centroid_distances(
    source: Tensor,  # [K, C] float32
    source_mass: Tensor,  # [K]; 0: there is no such class
    target: Tensor,  # [K, C] float32
    target_mass: Tensor,  # [K]
    *,
    normalise: str,
) -> Tensor:  # [K, K] float32, nats
    """The divergence of L_div between class i of the source (rows) and class j of the target; nan
    where there is no such class."""
    log_s, log_t = (_log_distribution(c.double(), normalise) for c in (source, target))
    s, t = log_s.exp(), log_t.exp()
    # ½(KL(s‖t) + KL(t‖s)) = ½ Σ_c (s − t)(log s − log t), multiplied out.
    own = (s * log_s).sum(1)[:, None] + (t * log_t).sum(1)[None, :]
    distances = 0.5 * (own - s @ log_t.t() - log_s @ t.t())
    absent = (source_mass <= 0)[:, None] | (target_mass <= 0)[None, :]
    return distances.clamp(min=0).masked_fill(absent, torch.nan).float()


def _log_distribution(centroids: Tensor, normalise: str) -> Tensor:
    """log of the distributions over channels that L_div makes of centroids [K, C]."""
    if normalise == "softmax":
        return centroids.log_softmax(1)
    shifted = centroids.clamp(min=0) + 1e-6  # eps of ops.symmetric_soft_divergence
    return (shifted / shifted.sum(1, keepdim=True)).log()


class RunningCentroids(nn.Module):
    """Exponential averages of both domains' class centroids.

    A class of the batch enters as m · running + (1 − m) · batch, and gradients flow to the batch's
    part; a class that the batch does not show keeps its running centroid, a constant.

    They move once a step (`settle`), by the centroids over all its micro-batches of all processes:
    as of one batch, and the same in each process. Until then each micro-batch enters the loss with
    its own centroids, or with `of_all` with those of all processes at their micro-batches.

    Args:
        momentum: m in (0, 1); the weight of the past.
        of_all: whether the batch is that of all processes (`global_centroids`).
    """

    running: Tensor  # [2, K, C] float32
    seen: Tensor  # [2, K] bool
    sums: Tensor  # [2, K, C] float32, of the step so far: centroids times their masses
    masses: Tensor  # [2, K] float32

    def __init__(
        self,
        momentum: float,
        num_classes: int,
        channels: int,
        processes: Processes | None = None,
        *,
        of_all: bool = False,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.processes = processes or Processes.alone()
        self.of_all = of_all
        self.register_buffer("running", torch.zeros(2, num_classes, channels))
        self.register_buffer("seen", torch.zeros(2, num_classes, dtype=torch.bool))
        self.register_buffer("sums", torch.zeros_like(self.running), persistent=False)
        self.register_buffer("masses", torch.zeros(2, num_classes), persistent=False)

    def blend(self, domain: int, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Centroids [K, C] of one domain (0 source, 1 target), and which of them there are [K]
        bool."""
        batch, mass = ops.class_centroids(features, labels, self.running.shape[1])
        with torch.no_grad():
            self.sums[domain] += batch * mass[:, None]
            self.masses[domain] += mass
        if self.of_all:
            batch, mass = _of_all(self.processes, batch, mass)
        # Copies: the backward pass wants them as they are now, not as they become.
        past, known = self.running[domain].clone(), self.seen[domain].clone()
        return self._mix(past, known, batch, mass), known | (mass > 0)

    @torch.no_grad()
    def settle(self) -> None:
        """Move the running centroids by all that was blended since the last call: at a step's end.

        All processes call it together.
        """
        batch, mass = _of_all(self.processes, _mean(self.sums, self.masses), self.masses)
        self.running.copy_(self._mix(self.running, self.seen, batch, mass))
        self.seen |= mass > 0
        self.sums.zero_()
        self.masses.zero_()

    def _mix(self, past: Tensor, known: Tensor, batch: Tensor, mass: Tensor) -> Tensor:
        mixed = torch.where(
            known[..., None], self.momentum * past + (1 - self.momentum) * batch, batch
        )
        return torch.where((mass > 0)[..., None], mixed, past)

    def divergence(
        self,
        source_features: Tensor,  # [B, C, h, w]
        source_labels: Tensor,  # [B, h, w] int64
        target_features: Tensor,  # [B, C, h, w]
        target_soft: Tensor,  # [B, K, h, w]
        *,
        normalise: str,
    ) -> Tensor:  # scalar float32, nats
        """L_div (Eq. 13) between the blended centroids of the classes seen on both sides."""
        source, in_source = self.blend(0, source_features, source_labels)
        target, in_target = self.blend(1, target_features, target_soft)
        return divergence_of_centroids(source, target, in_source & in_target, normalise=normalise)
