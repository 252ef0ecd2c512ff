"""Who learns from what: every loss reaches exactly the players that the method names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cscl_fast.config import AdaptationConfig
from cscl_fast.models import WeightAverage, build_model, freeze_affine
from cscl_fast.trainer.labelling import Labeller, PseudoLabels
from cscl_fast.trainer.players import Batch, Players

# E encoder, C classifier, D discriminator, Q quantizer T_Q, T critic T_C.
LEARNS = {
    "source": "ECQ",
    "target": "ECQ",
    "discriminator": "D",
    "adversarial": "E",
    "critic": "Q",
    "regression": "T",
    "divergence": "E",
    "reward": "",
    "transferability": "",
}


def batch(classes: int, size: tuple[int, int], seed: int) -> Batch:
    """One image of noise whose labels are blocks of every class, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, *size, generator=generator)
    blocks = torch.randint(0, classes, (1, 1, size[0] // 8, size[1] // 8), generator=generator)
    labels = nn.functional.interpolate(blocks.float(), size=size)[:, 0].long()
    labels[:, :4] = 255
    return Batch(images, images, labels, ["noise"])


def pseudo_labels(cscl: Players, target: Batch) -> PseudoLabels:
    config = AdaptationConfig(labels="live", thresholds="online", gamma=cscl.config.gamma)
    average = WeightAverage(nn.Linear(1, 1), 0.9)  # not used by live labels
    labeller = Labeller(cscl.model, average, config, cscl.model.num_classes)  # type: ignore[arg-type]
    labeller.begin_epoch(0, [target.clean])
    return labeller.label(target.clean)


def players(cscl: Players) -> dict[str, nn.Module]:
    return {
        "E": cscl.model.encoder,
        "C": cscl.model.classifier,
        "D": cscl.discriminator,
        "Q": cscl.quantizer,
        "T": cscl.critic,
    }


@pytest.fixture(scope="module")
def resnet101():
    torch.manual_seed(0)
    model = build_model("deeplabv2-resnet101", 19)
    freeze_affine(model)
    cscl = Players(model, AdaptationConfig()).train()
    # T_C's last layer starts at 0, which stops the gradient of the layers below it at step 1.
    nn.init.normal_(cscl.critic.value.weight, std=0.1)
    source, target = batch(19, (128, 256), 1), batch(19, (128, 256), 2)
    pseudo = pseudo_labels(cscl, target)
    losses = cscl.losses(source, target, pseudo, track=True)
    return cscl, losses


def test_all_losses_are_there_finite_and_at_work(resnet101) -> None:
    _, losses = resnet101
    assert losses.keys() == LEARNS.keys()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.ndim == 0 and torch.isfinite(loss), name
    for name in ("source", "target", "discriminator", "adversarial", "regression", "divergence"):
        assert losses[name] > 0, name


@pytest.mark.parametrize("name", LEARNS)
def test_each_loss_reaches_exactly_its_players(resnet101, name: str) -> None:
    cscl, losses = resnet101
    if not LEARNS[name]:
        assert not losses[name].requires_grad
        return
    reached = ""
    for player, module in players(cscl).items():
        learning = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(
            losses[name], learning, retain_graph=True, allow_unused=True
        )
        if all(g is not None and g.abs().max() > 0 for g in gradients):
            reached += player
        else:  # then no parameter of this player may get anything, not even zeros
            assert all(g is None for g in gradients), (name, player)
    assert reached == LEARNS[name]


def test_the_objective_reaches_every_parameter_that_learns_and_no_other(resnet101) -> None:
    cscl, losses = resnet101
    cscl.zero_grad(set_to_none=True)
    cscl.objective(losses).backward(retain_graph=True)
    frozen = {
        id(p) for m in cscl.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    assert len(frozen) == 2 * 104
    for name, parameter in cscl.named_parameters():
        if id(parameter) in frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


def test_weights_scale_the_objective_term_by_term(resnet101) -> None:
    cscl, losses = resnet101
    w = cscl.config.weights
    values = {k: float(v.detach()) for k, v in losses.items()}
    expected = (
        values["source"] + values["target"] + values["discriminator"] + values["regression"]
        + 0.3 * values["critic"] + 0.001 * values["adversarial"] + 10 * values["divergence"]
    )  # fmt: skip
    assert (w.critic, w.adversarial, w.divergence) == (0.3, 0.001, 10.0)  # Eq. 14
    assert float(cscl.objective(losses).detach()) == pytest.approx(expected, rel=1e-6)


def test_fcn8s_takes_the_joint_objective_on_its_coarser_features(monkeypatch) -> None:
    monkeypatch.setattr("cscl_fast.models.fcn8s.FC_CHANNELS", 64)  # not 4096: 0.5 GB of weights
    torch.manual_seed(0)
    model = build_model("fcn8s-vgg16", 5)
    cscl = Players(model, AdaptationConfig()).train()
    nn.init.normal_(cscl.critic.value.weight, std=0.1)
    source, target = batch(5, (96, 128), 1), batch(5, (96, 128), 2)
    grid = (3, 4)  # F at 1/32; the logits are at 1/8
    pseudo = pseudo_labels(cscl, target)
    assert pseudo.logits.shape[-2:] == (12, 16)
    assert pseudo.soft.shape == (1, 5, *grid) and pseudo.hard.shape == (1, *grid)
    losses = cscl.losses(source, target, pseudo, track=True)
    assert losses.keys() == LEARNS.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    cscl.objective(losses).backward()
    for name, parameter in cscl.named_parameters():
        assert parameter.grad is not None, name
    for module in players(cscl).values():
        assert any(p.grad.abs().max() > 0 for p in module.parameters() if p.grad is not None)
