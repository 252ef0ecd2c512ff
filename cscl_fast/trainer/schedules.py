"""The two schedules of one training step: `joint` and `alternating` (Algorithm 2).

Both end in the same optimizer steps; they differ in how many forwards they take and in what each
player already knows of the others' updates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cscl_fast.trainer.labelling import PseudoLabels, image_size
from cscl_fast.trainer.optimizers import Optimizers
from cscl_fast.trainer.players import (
    Batch,
    Losses,
    Players,
    View,
    mean_transferability,
    nearest_labels,
)

Guard = Callable[[Losses], None]
"""Called with the losses before anything is updated; raises if one is not finite."""


def joint_step(
    cscl: Players,
    optimizers: Optimizers,
    source: Batch,
    target: Batch,
    pseudo: PseudoLabels,
    guard: Guard,
) -> Losses:
    """One forward per image, one backward through Eq. 14, one step of every optimizer."""
    losses = cscl.losses(source, target, pseudo, track=True)
    guard(losses)
    optimizers.zero_grad()
    cscl.objective(losses).backward()
    optimizers.step()
    return losses


def alternating_step(
    cscl: Players,
    optimizers: Optimizers,
    source: Batch,
    target: Batch,
    pseudo: PseudoLabels,
    guard: Guard,
) -> Losses:
    """Algorithm 2, lines 4–9: D, then T_C, then T_Q, then E and C, each from its own forward.

    The pseudo-labels (line 3, Eq. 10) are given: they come from the label network.
    """
    weights = cscl.config.weights
    losses: Losses = {}

    def look() -> tuple[View, View, torch.Tensor]:
        """A forward that leaves the running statistics alone: the last one moves them."""
        s = cscl.look(source.images, source=True, track=False)
        t = cscl.look(target.images, source=False, track=False)
        return s, t, nearest_labels(source.labels, image_size(s.features.deep))

    def update(player: str, new: Losses, objective: torch.Tensor) -> None:
        guard(new)
        losses.update(new)
        optimizers.zero_grad()
        objective.backward()
        optimizers.step(player)

    if cscl.transfer:
        # Update D by Eq. 1.
        with torch.no_grad():
            s, t, _ = look()
        loss = cscl.discriminator_loss(s, t)
        update("discriminator", {"discriminator": loss}, loss)

        # Update T_C by Eq. 6: the rewards of Eq. 2–4 are what it learns to foresee.
        with torch.no_grad():
            s, t, labels = look()
        loss, reward = cscl.regression_loss((s, labels), (t, pseudo.hard))
        update("critic", {"regression": loss, "reward": reward}, weights.regression * loss)

        # Update T_Q by L_seg through the gate (Eq. 7) and L_cri (Eq. 5).
        s, t, _ = look()
        segmentation = cscl.segmentation_losses(s, source.labels, t, pseudo)
        loss = cscl.critic_loss(s, t)
        update(
            "quantizer",
            {"critic": loss},
            segmentation["source"] + weights.target * segmentation["target"]
            + weights.critic * loss,
        )  # fmt: skip

    # Update E and C by L_seg (Eq. 7), L_adv (Eq. 1) and L_div (Eq. 13).
    s = cscl.look(source.images, source=True, track=True)
    t = cscl.look(target.images, source=False, track=True)
    labels = nearest_labels(source.labels, image_size(s.features.deep))
    new = cscl.segmentation_losses(s, source.labels, t, pseudo)
    objective = new["source"] + weights.target * new["target"]
    if cscl.transfer:
        new["adversarial"] = cscl.adversarial_loss(t)
        objective = objective + weights.adversarial * new["adversarial"]
        losses["transferability"] = mean_transferability(s, t)
    if cscl.aligns:
        new["divergence"] = cscl.divergence_loss(s, labels, t, pseudo)
        objective = objective + weights.divergence * new["divergence"]
    update("model", new, objective)
    return losses


SCHEDULES = {"joint": joint_step, "alternating": alternating_step}


def modules_of(cscl: Players) -> dict[str, nn.Module]:
    """The four players by the names that `Optimizers.step` takes."""
    return {
        "model": cscl.model,
        "discriminator": cscl.discriminator,
        "quantizer": cscl.quantizer,
        "critic": cscl.critic,
    }
