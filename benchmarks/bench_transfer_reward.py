"""transfer_reward against the rewards of Eq. 4-6 in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from contests import (
    COMPILED,
    EAGER,
    LITERAL,
    OURS,
    Case,
    compiled,
    contests,
    latest,
    network_labels,
    network_logits,
)
from torch import Tensor

from cscl_fast import ops

pytestmark = pytest.mark.timeout(900)

Answer = tuple[Tensor, Tensor]  # reward, valid; both [B, 1, h, w]

QUICK = [
    Case((4, 19, 65, 129)),
    Case((1, 19, 32, 64)),
]
FULL = [
    Case((4, 16, 65, 129)),
    Case((4, 13, 65, 129)),
    Case((4, 19, 65, 129), dtype=torch.bfloat16),
    Case((4, 19, 65, 129), channels_last=True),
    Case((1, 19, 512, 1024)),
]


def bytes_to_move(case: Case) -> int:
    """Both logits and the labels read once, rewards and their validity written once."""
    return 2 * case.logits_bytes + case.pixels * (8 + 4 + 1)


@latest
def data(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    plain = network_logits(case)
    generator = torch.Generator().manual_seed(3)
    noise = 0.5 * torch.randn(case.shape, generator=generator)
    gated = (1.1 * plain.float() + noise).to(case.dtype)
    labels = plain.float().argmax(dim=1)
    ignored = network_labels((case.shape[0], *case.area), case.shape[1]) == 255
    return gated, plain, torch.where(ignored, 255, labels)


# ---- the contenders -----------------------------------------------------------------------------


def literal(gated: Tensor, plain: Tensor, labels: Tensor) -> Answer:
    """R^s and R^a as they stand in the contract, one PyTorch call for each symbol."""
    valid = (labels != 255)[:, None]
    label = torch.where(valid, labels[:, None], 0)
    gated_p = torch.softmax(gated.float(), dim=1)
    plain_p = torch.softmax(plain.float(), dim=1)
    right = torch.argmax(gated_p, dim=1, keepdim=True) == label
    likelier = torch.gather(gated_p, 1, label) > torch.gather(plain_p, 1, label)
    return (right.float() + likelier.float()) * valid, valid


def eager(gated: Tensor, plain: Tensor, labels: Tensor) -> Answer:
    """As one would write it with care: log p of the label alone, no softmax is stored."""
    valid = (labels != 255)[:, None]
    label = torch.where(valid, labels[:, None], 0)
    gated, plain = gated.float(), plain.float()
    right = gated.argmax(dim=1, keepdim=True) == label
    gain = gated.gather(1, label) - gated.logsumexp(dim=1, keepdim=True)
    gain = gain - (plain.gather(1, label) - plain.logsumexp(dim=1, keepdim=True))
    return (right.float() + (gain > 0).float()) * valid, valid


def ours(gated: Tensor, plain: Tensor, labels: Tensor) -> Answer:
    return ops.transfer_reward(gated, plain, labels)


CONTENDERS: dict[str, Callable[..., Answer]] = {
    LITERAL: literal,
    EAGER: eager,
    COMPILED: lambda *arguments: compiled(eager)(*arguments),
    OURS: ours,
}


# ---- checking and timing ------------------------------------------------------------------------


@latest
def reference(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: reward, valid, and the locations whose decision is not within rounding."""
    gated, plain, labels = data(case)
    valid = (labels != 255)[:, None]
    label = torch.where(valid, labels[:, None], 0)
    gated, plain = gated.double(), plain.double()
    right = gated.argmax(dim=1, keepdim=True) == label
    gain = (F.log_softmax(gated, 1) - F.log_softmax(plain, 1)).gather(1, label)
    # Probabilities near 1, which literal code compares, differ by less than their logarithms.
    return (right.float() + (gain > 0).float()) * valid, valid, gain.abs() > 1e-4


def check(case: Case, answer: Answer) -> None:
    """Fails on a wrong answer; a fast wrong answer is no contender."""
    reward, valid, sure = reference(case)
    assert torch.equal(answer[1], valid)
    wrong = (answer[0] != reward) & sure
    assert not bool(wrong.any()), f"{int(wrong.sum())} rewards are wrong"


@contests(QUICK, FULL, CONTENDERS, once=(COMPILED,))
def bench(case: Case, contender: str, contend: Callable[..., None]) -> None:
    arguments = data(case)
    function = CONTENDERS[contender]
    with torch.no_grad():
        check(case, function(*arguments))
        contend(
            lambda: function(*arguments),
            operator="transfer_reward",
            group=str(case),
            contender=contender,
            bytes=bytes_to_move(case),
        )
