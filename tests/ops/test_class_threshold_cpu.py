"""The compiled kernels of Algorithm 1: threads, ranges of bins, and counts that are kept as keys.

The table that every backend passes is in test_class_threshold.py.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from operator_cases import CASES, Case, make_logits

from cscl_fast import use_backend
from cscl_fast.backends import why_unavailable
from cscl_fast.backends.cpu import class_threshold as cpu
from cscl_fast.ops import ClassThresholds, class_thresholds

pytestmark = pytest.mark.skipif(why_unavailable("cpu") is not None, reason="no compiled kernels")
MANY = Case("many", (2, 19, 150, 263))
PORTIONS = [0.05, 0.35, 0.5, 1.0]


@pytest.fixture(autouse=True)
def _compiled(_reference: None) -> Iterator[None]:
    with use_backend("auto"):
        yield


def counted(logits: torch.Tensor, **upsampling: object) -> torch.Tensor:
    """The histogram, made by the kernel that counts into it."""
    histogram = cpu.new_histogram(logits.shape[1])
    size = upsampling.get("size") or logits.shape[2:]
    cpu.update(histogram, logits, tuple(size), bool(upsampling.get("align_corners")))
    return histogram


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [None, (300, 201)])
def test_any_number_of_threads(dtype: torch.dtype, size: tuple[int, int] | None) -> None:
    logits = make_logits(MANY, dtype)
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            answers.append((counted(logits, size=size), class_thresholds(logits, 0.4, size=size)))
    finally:
        torch.set_num_threads(before)
    for histogram, exact in answers[1:]:
        assert torch.equal(histogram, answers[0][0])
        assert torch.equal(exact, answers[0][1])


@pytest.mark.parametrize("classes", [1, 2, 32, 33, 65, 129, 256])
def test_every_width_of_a_range(classes: int) -> None:
    logits = make_logits(Case("ranges", (1, classes, 100, 110)), torch.float32)
    keys = cpu.keys(logits, (100, 110), False)
    wanted = torch.bincount(keys, minlength=classes * 65536)
    assert torch.equal(counted(logits).flatten(), wanted)


def test_more_pixels_than_are_held_at_once() -> None:
    logits = make_logits(Case("chunks", (3, 2, 700, 801)), torch.float32)
    logits[1, 0, 5, 5:60] = torch.nan
    histogram = counted(logits)
    assert histogram.sum() == 3 * 700 * 801 - 55
    assert torch.equal(histogram, sum(counted(image[None]) for image in logits))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kept_keys_answer_as_the_histogram(case: Case) -> None:
    logits = make_logits(case, torch.float32)
    kept = ClassThresholds(case.shape[1])
    kept.update(logits, **case.upsampling)
    kept.update(logits.flip(1), **case.upsampling)
    assert kept._histogram is None
    counts, thresholds = kept.counts, kept.compute(PORTIONS)
    assert kept._histogram is None
    full = ClassThresholds(case.shape[1])
    full._counted()
    full.update(logits, **case.upsampling)
    full.update(logits.flip(1), **case.upsampling)
    assert torch.equal(full.counts, counts)
    assert torch.equal(full.compute(PORTIONS), thresholds)
    assert torch.equal(kept.state_dict()["histogram"], full.state_dict()["histogram"])
    assert torch.equal(kept.compute(PORTIONS), thresholds)


def test_keys_become_a_histogram_when_there_are_many() -> None:
    logits = make_logits(MANY, torch.float32)
    stream = ClassThresholds(19)
    for _ in range(3):
        stream.update(logits[:1])
    assert stream._histogram is not None
    assert not stream._keys
    assert torch.equal(stream.counts, 3 * counted(logits[:1]).sum(1))
    stream.reset()
    assert stream.counts.sum() == 0


def test_keys_are_merged_copied_and_stored() -> None:
    logits = make_logits(CASES[0], torch.float32)
    stream = ClassThresholds(19)
    stream.update(logits)
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream)), ClassThresholds(19)]
    copies[2].merge(stream)
    for other in copies:
        assert torch.equal(other.compute(PORTIONS), stream.compute(PORTIONS))
    stream.update(logits)
    assert torch.equal(copies[0].counts * 2, stream.counts)
    stream.load_state_dict(copies[0].state_dict())
    assert torch.equal(copies[0].counts, stream.counts)


def test_counting_goes_on_outside_of_inference_mode() -> None:
    stream = ClassThresholds(19)
    with torch.inference_mode():
        stream.update(make_logits(MANY, torch.float32))
    stream.update(make_logits(MANY, torch.float32))
    stream.merge(stream)
    assert stream.counts.sum() == 4 * 2 * 150 * 263


def test_other_backends_go_on_counting() -> None:
    logits = make_logits(CASES[0], torch.float32)
    stream, plain = ClassThresholds(19), ClassThresholds(19)
    stream.update(logits)
    with use_backend("reference"):
        stream.update(logits)
        plain.update(logits)
        assert torch.equal(stream.counts, 2 * plain.counts)
        assert stream.compute(PORTIONS).shape == (4, 19)
    stream.update(logits.double())
    assert torch.equal(stream.counts, 3 * plain.counts)


def test_a_hot_bin() -> None:
    logits = torch.zeros(1, 19, 300, 300)
    logits[:, 7] = 100.0
    histogram = counted(logits)
    assert histogram[7, -1] == histogram.sum() == 90_000
    assert class_thresholds(logits, 0.35).tolist() == [1.0] * 19


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    logits = make_logits(CASES[1], torch.float32).requires_grad_(requires_grad)
    library = torch.ops.cscl_fast
    histogram = counted(logits.detach())
    torch.library.opcheck(library.class_thresholds.default, (logits, 0.4, 11, 13, False))
    torch.library.opcheck(
        library.class_threshold_update.default, (histogram.clone(), logits, 11, 13, False)
    )
    for other in (None, histogram):
        torch.library.opcheck(
            library.thresholds_of_histogram.default, (histogram, other, [0.3, 0.4])
        )
