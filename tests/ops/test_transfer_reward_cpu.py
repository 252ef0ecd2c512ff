"""The compiled kernel of `transfer_reward`: what only this backend has.

The table that every backend passes is in test_transfer_reward.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cscl_fast import backends, use_backend
from cscl_fast.ops import transfer_reward

pytestmark = pytest.mark.skipif(
    backends.why_unavailable("cpu") is not None, reason="no compiled kernels"
)


@pytest.fixture(autouse=True)
def _cpu(_reference: None) -> Iterator[None]:
    with use_backend("cpu"):
        yield


def arguments(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[1])
    plain = torch.randn(shape, generator=generator) * 3
    gated = plain + 0.5 * torch.randn(shape, generator=generator)
    # A third differs in the last place only, where float32 cannot tell who is likelier.
    close = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.33
    gated = torch.where(close, torch.nextafter(plain, torch.full_like(plain, 50.0)), gated)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return gated, plain, labels


@pytest.mark.parametrize("classes", [2, 7, 13, 16, 19, 20, 64])
def test_close_calls_are_decided_in_double(classes: int) -> None:
    gated, plain, labels = arguments((2, classes, 33, 41))
    found = transfer_reward(gated, plain, labels)
    with use_backend("reference"):
        wanted = transfer_reward(gated, plain, labels)
    assert torch.equal(found[1], wanted[1])
    place = torch.where(wanted[1], labels[:, None], 0)
    sides = (side.double().log_softmax(1).gather(1, place) for side in (gated, plain))
    gain = next(sides) - next(sides)
    # Closer than the rounding of a double sum, the order of summation decides.
    sure = (gain.abs() > 1e-14) | (gain == 0)
    assert torch.equal(found[0][sure], wanted[0][sure])


@pytest.mark.parametrize("threads", [2, 7])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    given = arguments((3, 19, 65, 129))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = transfer_reward(*given)
        torch.set_num_threads(threads)
        more = transfer_reward(*given)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], more[0])
    assert torch.equal(one[1], more[1])


def test_a_broken_location_changes_no_other() -> None:
    gated, plain, labels = arguments((1, 19, 9, 37))
    labels[0, 4, 7] = labels[0, 6, 9] = 3
    wanted, _ = transfer_reward(gated, plain, labels)
    gated[0, 3, 4, 7] = torch.nan
    plain[0, 5, 6, 9] = torch.inf
    found, valid = transfer_reward(gated, plain, labels)
    assert found[0, 0, 4, 7] == 0
    others = torch.ones_like(valid)
    others[0, 0, 4, 7] = others[0, 0, 6, 9] = False
    assert torch.equal(found[others], wanted[others])


@pytest.mark.parametrize("classes", [4, 19])
def test_the_two_sides_may_lie_and_be_typed_differently(classes: int) -> None:
    gated, plain, labels = arguments((2, classes, 20, 31))
    plain = plain.half()
    wanted = transfer_reward(gated, plain.float(), labels)
    last = plain.contiguous(memory_format=torch.channels_last)
    wider = torch.full((2, classes, 20, 63), torch.nan)
    wider[..., 1::2] = gated
    for given in ((gated, plain), (gated, last), (wider[..., 1::2], last.float())):
        found = transfer_reward(*given, labels)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    assert transfer_reward(gated, plain.double(), labels)[0].shape == (2, 1, 20, 31)


@pytest.mark.parametrize("label", [-1, 19, 254, 2**40, -(2**40)])
def test_a_label_out_of_range_is_named(label: int) -> None:
    gated, plain, labels = arguments((1, 19, 5, 6))
    labels[0, 3, 2] = label
    with pytest.raises(ValueError, match=rf"labels\[0, 3, 2\] is {label}; .* 0\.\.18, or 255"):
        transfer_reward(gated, plain, labels)


def test_opcheck() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        gated, plain, labels = arguments((2, 5, 6, 7))
        gated = gated.contiguous(memory_format=memory_format)
        for requires_grad in (False, True):
            torch.library.opcheck(
                torch.ops.cscl_fast.transfer_reward.default,
                (gated.requires_grad_(requires_grad), plain, labels),
            )
