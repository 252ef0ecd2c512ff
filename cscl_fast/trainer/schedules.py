"""The two schedules of one training step: `joint` and `alternating` (Algorithm 2).

Both end in the same optimizer steps; they differ in how many forwards they take and in what each
player already knows of the others' updates. The pseudo-labels (Algorithm 2, line 3; Eq. 10) are
given: they come from the label network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cscl_fast.trainer.grids import image_size, nearest_labels
from cscl_fast.trainer.players import (
    Losses,
    Pair,
    Players,
    View,
    constant,
    mean_transferability,
)
from cscl_fast.trainer.update import Update


def joint_step(players: Players, update: Update[Pair]) -> None:
    """One forward per image, one backward through Eq. 14, one step of every optimizer."""

    def losses(pair: Pair) -> Losses:
        """Every loss of Eq. 14."""
        return players.losses(pair.source, pair.target, pair.pseudo, track=True, shares=pair.shares)

    update(None, losses)


def alternating_step(players: Players, update: Update[Pair]) -> None:
    """Algorithm 2, lines 4–9: D, then T_C, then T_Q, then E and C, each from its own forward.

    Only the last forward moves running statistics.
    """

    def look(pair: Pair, *, track: bool = False) -> tuple[View, View, Tensor]:
        """A forward of both domains, and the source's labels on the grid of its features."""
        s = players.look(pair.source.images, source=True, track=track)
        t = players.look(pair.target.images, source=False, track=track)
        return s, t, nearest_labels(pair.source.labels, image_size(s.features.deep))

    def discriminator(pair: Pair) -> Losses:
        """D learns to tell the domains apart (Eq. 1)."""
        with torch.no_grad():
            s, t, _ = look(pair)
        return {"discriminator": players.discriminator_loss(s, t, pair.shares)}

    def critic(pair: Pair) -> Losses:
        """T_C learns to foresee (Eq. 6) the rewards of Eq. 2–4."""
        with torch.no_grad():
            s, t, labels = look(pair)
        regression, reward = players.regression_loss((s, labels), (t, pair.pseudo.hard))
        return {"regression": regression, "reward": reward}

    def quantizer(pair: Pair) -> Losses:
        """T_Q learns from L_seg through the gate (Eq. 7) and from L_cri (Eq. 5)."""
        with constant(players.model):
            s, t, _ = look(pair)
        losses = players.segmentation_losses(s, pair.source.labels, t, pair.pseudo)
        losses["critic"] = players.critic_loss(s, t)
        return losses

    def model(pair: Pair) -> Losses:
        """E and C learn from L_seg (Eq. 7), L_adv (Eq. 1) and L_div (Eq. 13)."""
        s, t, labels = look(pair, track=True)
        losses = players.segmentation_losses(s, pair.source.labels, t, pair.pseudo)
        if players.transfer:
            losses["adversarial"] = players.adversarial_loss(t)
            losses["transferability"] = mean_transferability(s, t)
        if players.aligns:
            losses["divergence"] = players.divergence_loss(s, labels, t, pair.pseudo)
        players.watch(s, labels, t, pair.pseudo)
        return losses

    if players.transfer:
        update("discriminator", discriminator)
        update("critic", critic)
        update("quantizer", quantizer)
    update("model", model)


SCHEDULES = {"joint": joint_step, "alternating": alternating_step}


def modules_of(players: Players) -> dict[str, nn.Module]:
    """The four players by the names that `Optimizers.step` takes."""
    return {
        "model": players.model,
        "discriminator": players.discriminator,
        "quantizer": players.quantizer,
        "critic": players.critic,
    }
