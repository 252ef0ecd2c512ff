"""ClassThresholds and class_thresholds: Algorithm 1 against sorting."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from operator_cases import CASES, Case, Place, array, assert_within, make_logits

from cscl_fast.ops import ClassThresholds, class_thresholds

OPERATOR = "class_thresholds"
# The contract's bound for streaming, and the rounding of float32 confidences.
STREAMING_BOUND = 2.0**-16 + 1e-6
PORTIONS = (0.35, 0.5, 1.0)


def expected(logits: torch.Tensor, portion: float, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and counts."""
    z = oracles.upsample(array(logits), case.size, case.align_corners)
    return oracles.thresholds(z, portion)


def test_agrees_with_sorting(place: Place, case: Case, dtype: torch.dtype, layout: str) -> None:
    logits = make_logits(case, dtype, place.device, layout)
    stream = ClassThresholds(case.shape[1])
    stream.update(logits, **case.upsampling)
    assert stream.counts.dtype == torch.int64
    for portion in PORTIONS:
        delta, counts = expected(logits, portion, case)
        exact = class_thresholds(logits, portion, **case.upsampling)
        assert exact.dtype == torch.float32
        assert_within(exact, delta)
        np.testing.assert_array_equal(array(stream.counts), counts)
        streamed = stream.compute(portion)
        assert streamed.dtype == torch.float32
        assert ((streamed > 0) & (streamed <= 1)).all()
        assert_within(streamed, delta, 0.0, STREAMING_BOUND)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 20, 40])
def test_index_is_pythons_own_floor(place: Place, count: int) -> None:
    """Portions whose product with n is a hair below or at an integer, such as 0.35 * 20."""
    sharpness = torch.linspace(0.1, 5.0, count)
    logits = torch.stack([sharpness, torch.zeros(count)])[None, :, None].to(place.device)
    stream = ClassThresholds(2)
    stream.update(logits)
    for portion in (0.05, 0.1, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.7, 0.9, 1.0):
        delta, _ = oracles.thresholds(array(logits), portion)
        assert_within(class_thresholds(logits, portion), delta)
        assert_within(stream.compute(portion), delta, 0.0, STREAMING_BOUND)


def test_streaming_error_over_many_confidences(place: Place) -> None:
    case = Case("many", (2, 4, 65, 129), (260, 516))
    logits = make_logits(case, torch.float32, place.device)
    stream = ClassThresholds(4)
    stream.update(logits, **case.upsampling)
    for portion in np.linspace(0.01, 1.0, 34):
        exact = class_thresholds(logits, float(portion), **case.upsampling)
        # Against the same float32 confidences: half a bin, half of what is promised.
        assert (stream.compute(float(portion)) - exact).abs().max() <= 2.0**-17


def test_several_portions_and_two_streams(place: Place) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    one, two, both = (ClassThresholds(19, device=place.device) for _ in range(3))
    one.update(logits, **case.upsampling)
    two.update(logits.flip(1), **case.upsampling)
    both.merge(one)
    both.merge(two)
    counts = one.counts
    found = one.compute(PORTIONS, together_with=two)
    assert found.shape == (3, 19)
    assert torch.equal(found, torch.stack([both.compute(portion) for portion in PORTIONS]))
    assert torch.equal(one.compute([0.4])[0], one.compute(0.4))
    assert torch.equal(one.counts, counts)


def test_bad_portions_are_named() -> None:
    stream = ClassThresholds(4)
    with pytest.raises(ValueError, match=r"portion\[1\] is 1\.5; it must be in \(0, 1\]"):
        stream.compute([0.5, 1.5])
    with pytest.raises(TypeError, match=r"portion\[0\] must be a number; got str"):
        stream.compute(("0.5",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="portion is empty"):
        stream.compute([])
    with pytest.raises(ValueError, match="together_with counts 5 classes; these thresholds are"):
        stream.compute(0.5, together_with=ClassThresholds(5))
    with pytest.raises(TypeError, match="together_with must be ClassThresholds; got int"):
        stream.compute(0.5, together_with=3)  # type: ignore[arg-type]


def test_certain_pixels(place: Place) -> None:
    logits = torch.full((1, 3, 2, 2), -200.0, device=place.device)
    logits[:, 1] = 200.0
    stream = ClassThresholds(3)
    stream.update(logits)
    assert stream.counts.tolist() == [0, 4, 0]
    assert class_thresholds(logits, 0.5).tolist() == [1.0, 1.0, 1.0]
    assert stream.compute(0.5).tolist() == [1.0, 1.0 - 2.0**-17, 1.0]


def test_ties_go_to_the_lowest_class(place: Place) -> None:
    logits = torch.zeros(1, 4, 3, 3, device=place.device)
    stream = ClassThresholds(4)
    stream.update(logits, size=(5, 7))
    assert stream.counts.tolist() == [35, 0, 0, 0]
    assert class_thresholds(logits, 0.5).tolist() == [0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [None, (9, 10)])
def test_pixels_that_are_not_finite_do_not_count(
    place: Place, bad: float, size: tuple[int, int] | None
) -> None:
    case = Case("not finite", (2, 5, 4, 5), size)
    logits = make_logits(case, torch.float32, place.device)
    logits[1, 2, 1, 3] = bad
    stream = ClassThresholds(5)
    stream.update(logits, **case.upsampling)
    delta, counts = expected(logits, 0.4, case)
    assert counts.sum() < 2 * case.area[0] * case.area[1]
    np.testing.assert_array_equal(array(stream.counts), counts)
    assert_within(class_thresholds(logits, 0.4, **case.upsampling), delta)
    assert_within(stream.compute(0.4), delta, 0.0, STREAMING_BOUND)


def test_pieces_in_any_order_count_as_the_whole(place: Place) -> None:
    case = CASES[1]
    logits = make_logits(case, torch.float32, place.device)
    whole, pieces, merged = ClassThresholds(5), ClassThresholds(5), ClassThresholds(5)
    whole.update(logits, **case.upsampling)
    for piece in reversed(logits.split(1)):
        pieces.update(piece, **case.upsampling)
        other = ClassThresholds(5)
        other.update(piece, **case.upsampling)
        merged.merge(other)
    for candidate in (pieces, merged):
        assert torch.equal(candidate.state_dict()["histogram"], whole.state_dict()["histogram"])
        assert torch.equal(candidate.compute(0.35), whole.compute(0.35))


def test_permuting_classes_permutes_the_answer(place: Place) -> None:
    case = CASES[3]
    logits = make_logits(case, torch.float32, place.device)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1)).to(place.device)
    permuted = class_thresholds(logits[:, order], 0.4, **case.upsampling)
    assert_within(permuted, array(class_thresholds(logits, 0.4, **case.upsampling)[order]))


def test_memory_of_an_update_is_that_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk never holds more upsampled values than its limit, or one image."""
    from cscl_fast.backends.reference import class_threshold, numerics

    seen = []
    plain = class_threshold.upsampled_logits

    def watched(*arguments: object) -> torch.Tensor:
        seen.append(plain(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(numerics, "ELEMENTS_AT_ONCE", 2 * 5 * 12 * 14)
    monkeypatch.setattr(class_threshold, "upsampled_logits", watched)
    logits = torch.randn(5, 5, 4, 6)
    stream = ClassThresholds(5)
    stream.update(logits, size=(12, 14))
    assert [len(values) for values in seen] == [2, 2, 1]
    assert stream.counts.sum() == 5 * 12 * 14


def test_counts_are_exact_beyond_float32() -> None:
    stream = ClassThresholds(2)
    state = stream.state_dict()
    state["histogram"][0, 100] = 2**40 + 1
    state["histogram"][0, 200] = 3
    stream.load_state_dict(state)
    assert stream.counts.tolist() == [2**40 + 4, 0]
    assert stream.compute(1.0)[0] == (2 * 100 + 1) / 2**17
    assert stream.compute(1e-13)[0] == (2 * 200 + 1) / 2**17


def test_state_survives_a_file_and_is_a_copy(tmp_path: Path) -> None:
    stream = ClassThresholds(19)
    stream.update(make_logits(CASES[0], torch.float32))
    state = stream.state_dict()
    torch.save(state, tmp_path / "thresholds.pt")
    before = stream.compute(0.4)
    stream.reset()
    assert stream.counts.sum() == 0
    assert (stream.compute(0.4) == 1).all()
    other = ClassThresholds(19)
    other.load_state_dict(torch.load(tmp_path / "thresholds.pt", weights_only=True))
    assert torch.equal(other.compute(0.4), before)
    stream.load_state_dict(state)
    stream.reset()
    assert state["histogram"].sum() > 0
    assert io.BytesIO((tmp_path / "thresholds.pt").read_bytes()).getbuffer().nbytes > 0


def test_state_of_something_else_is_refused() -> None:
    stream = ClassThresholds(4)
    good = stream.state_dict()
    with pytest.raises(ValueError, match="state has num_classes 5; these thresholds are for 4"):
        stream.load_state_dict(ClassThresholds(5).state_dict())
    with pytest.raises(ValueError, match="state has 1024 bins; this version has 65536"):
        stream.load_state_dict({**good, "bins": 1024})
    with pytest.raises(ValueError, match="state has no 'histogram'; it has"):
        stream.load_state_dict({"num_classes": 4, "bins": 65536})
    with pytest.raises(ValueError, match=r"is \[4, 10\]; it must be \[4, 65536\]"):
        stream.load_state_dict({**good, "histogram": torch.zeros(4, 10, dtype=torch.int64)})
    with pytest.raises(TypeError, match=r"must be one of torch\.int64; got torch\.float32"):
        stream.load_state_dict({**good, "histogram": good["histogram"].float()})
    with pytest.raises(ValueError, match="negative counts"):
        stream.load_state_dict({**good, "histogram": good["histogram"] - 1})


def test_merging_something_else_is_refused() -> None:
    stream = ClassThresholds(4)
    with pytest.raises(ValueError, match="other counts 5 classes; these thresholds are for 4"):
        stream.merge(ClassThresholds(5))
    with pytest.raises(TypeError, match="other must be ClassThresholds; got dict"):
        stream.merge(stream.state_dict())  # type: ignore[arg-type]


def test_devices() -> None:
    pinned = ClassThresholds(3, device="meta")
    with pytest.raises(ValueError, match="logits are on cpu and the counts on meta"):
        pinned.update(torch.zeros(1, 3, 2, 2))
    following = ClassThresholds(3)
    following.update(torch.zeros(1, 3, 2, 2, device="meta"))
    assert following.device.type == "meta"
    assert ClassThresholds(3).to("meta").device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counts_follow_the_logits_to_the_gpu() -> None:
    stream, here = ClassThresholds(19), ClassThresholds(19)
    logits = make_logits(CASES[0], torch.float32)
    stream.update(logits)
    stream.update(logits.cuda())
    here.update(logits)
    here.update(logits)
    assert stream.device.type == "cuda"
    assert torch.equal(stream.counts.cpu(), here.counts)
    here.merge(stream)
    assert here.device.type == "cpu"
    assert here.counts.sum() == 2 * stream.counts.sum()


def test_all_reduce_needs_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        ClassThresholds(3).all_reduce()


def _count_one_image(rank: int, folder: str) -> None:
    """Runs in each process of the test below."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    stream = ClassThresholds(5)
    stream.update(make_logits(CASES[1], torch.float32)[rank : rank + 1], size=(11, 13))
    stream.all_reduce()
    torch.save(stream.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_count_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_count_one_image, args=(str(tmp_path),), nprocs=2)
    whole = ClassThresholds(5)
    whole.update(make_logits(CASES[1], torch.float32), size=(11, 13))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(state["histogram"], whole.state_dict()["histogram"])
