"""Every operator inside torch.compile, autocast and no_grad, on every backend that has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from operator_cases import Case, Place, make_logits, make_thresholds, places_of

from cscl_fast import backends, ops, use_backend

CASE = Case("library", (2, 5, 6, 7), (15, 20))
OTHER = Case("library, other shape", (3, 5, 7, 8), (16, 21))
Answer = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Operator:
    """A public function of one tensor; the rest of its arguments follow from the tensor's shape."""

    name: str
    call: Callable[[torch.Tensor], Answer]
    differentiable: bool


def _labels(x: torch.Tensor, scale: int = 1) -> torch.Tensor:
    grid = torch.arange(x.shape[0] * x.shape[2] * x.shape[3] * scale * scale, device=x.device)
    labels = (grid % 6).view(x.shape[0], x.shape[2] * scale, x.shape[3] * scale)
    return torch.where(labels == 5, 255, labels)


def _soft(x: torch.Tensor) -> torch.Tensor:
    soft = (x.detach().float() * 2).softmax(1)
    return torch.where(soft.amax(1, keepdim=True) > 0.4, soft, 0)


def _delta(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.2, 1.0, x.shape[1], device=x.device)


def _larger(x: torch.Tensor) -> tuple[int, int]:
    return 2 * x.shape[2] + 3, 3 * x.shape[3]


def _stream(x: torch.Tensor) -> Answer:
    stream = ops.ClassThresholds(x.shape[1], device=x.device)
    stream.update(x, size=_larger(x))
    return stream.compute(0.4), stream.counts


OPERATORS = (
    Operator(
        "soft_pseudo_labels",
        lambda x: tuple(ops.soft_pseudo_labels(x, _delta(x), size=_larger(x))),
        False,
    ),
    Operator(
        "pseudo_label_loss",
        lambda x: (ops.pseudo_label_loss(x, _delta(x), size=_larger(x)),),
        True,
    ),
    Operator(
        "upsampled_cross_entropy", lambda x: (ops.upsampled_cross_entropy(x, _labels(x, 3)),), True
    ),
    Operator("class_thresholds", lambda x: (ops.class_thresholds(x, 0.4, size=_larger(x)),), False),
    Operator("class_thresholds", _stream, False),
    Operator("class_centroids", lambda x: ops.class_centroids(x, _labels(x), 5), True),
    Operator("class_centroids", lambda x: ops.class_centroids(x, _soft(x), 5), True),
    Operator(
        "symmetric_soft_divergence",
        lambda x: (ops.symmetric_soft_divergence(x, _labels(x), x * 2, _soft(x)),),
        True,
    ),
    Operator("transfer_reward", lambda x: ops.transfer_reward(x, x.flip(2), _labels(x)), False),
)
PLACED = [
    pytest.param(operator, place, id=f"{operator.name}-{i}-{place.backend}-{place.device}")
    for i, operator in enumerate(OPERATORS)
    for place in places_of(operator.name)
]


def run(operator: Operator, call: Callable[..., Answer], x: torch.Tensor) -> Answer:
    """The answers, and the gradient of the first one if there is one."""
    x = x.clone().requires_grad_(operator.differentiable)
    answers = call(x)
    if operator.differentiable:
        answers[0].sum().backward()
        answers = (*answers, x.grad)
    return tuple(answer.detach() for answer in answers)


def same(found: Answer, wanted: Answer) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("operator", "place"), PLACED)
def test_compiles_whole_and_for_other_shapes(operator: Operator, place: Place) -> None:
    torch.compiler.reset()
    compiled = torch.compile(operator.call, fullgraph=True, backend="aot_eager")
    with use_backend(place.backend):
        for case in (CASE, OTHER):
            x = make_logits(case, torch.float32, place.device)
            same(run(operator, compiled, x), run(operator, operator.call, x))


def test_a_compiled_step_counts_into_the_stream_outside() -> None:
    compiled_stream, eager_stream = ops.ClassThresholds(5), ops.ClassThresholds(5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        compiled_stream.update(x, size=(15, 20))
        return compiled_stream.compute(0.4)

    torch.compiler.reset()
    for salt in range(3):
        x = make_logits(CASE, torch.float32, salt=salt)
        eager_stream.update(x, size=(15, 20))
        assert torch.equal(step(x), eager_stream.compute(0.4))
    assert torch.equal(compiled_stream.counts, eager_stream.counts)


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="the inductor needs a C++ compiler"
)
@pytest.mark.parametrize("place", places_of("soft_pseudo_labels"), ids=str)
def test_compiles_to_machine_code(place: Place) -> None:
    """A compiled operator and one that is traced, in one graph, by PyTorch's own compiler."""
    delta = make_thresholds(5, place.device)

    def loss(x: torch.Tensor) -> Answer:
        soft, hard = ops.soft_pseudo_labels(x, delta)
        return ops.pseudo_label_loss(x, delta, size=(9, 11)), soft, hard

    operator = Operator("losses", loss, True)
    x = make_logits(CASE, torch.float32, place.device)
    torch.compiler.reset()
    with use_backend(place.backend):
        same(run(operator, torch.compile(loss, fullgraph=True), x), run(operator, loss, x))


@pytest.mark.parametrize(("operator", "place"), PLACED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(operator: Operator, place: Place, dtype: torch.dtype) -> None:
    x = make_logits(CASE, dtype, place.device)
    with use_backend(place.backend):
        wanted = run(operator, operator.call, x)
        with torch.autocast(place.device, dtype=torch.bfloat16):
            found = run(operator, operator.call, x)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize(("operator", "place"), PLACED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(
    operator: Operator, place: Place, mode: Callable[[], torch.no_grad]
) -> None:
    x = make_logits(CASE, torch.float32, place.device).requires_grad_()
    with use_backend(place.backend):
        wanted = operator.call(x)
        with mode():
            found = operator.call(x)
    for a, b in zip(found, wanted, strict=True):
        assert not a.requires_grad
        assert torch.equal(a, b)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_float64_stays_float64(operator: Operator) -> None:
    x = make_logits(CASE, torch.float64)
    wanted = operator.call(x.float())
    for a, b in zip(operator.call(x), wanted, strict=True):
        assert a.dtype == (torch.float64 if b.is_floating_point() and _wide(operator) else b.dtype)
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-5, atol=1e-6)


def _wide(operator: Operator) -> bool:
    """Thresholds are float32 confidences and rewards small integers in any case."""
    return operator.name not in ("class_thresholds", "transfer_reward")


@pytest.mark.skipif(
    "soft_pseudo_labels" not in backends.kernels("cpu") or "cpu" not in backends.available(),
    reason="the compiled library is not installed",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(6, 7), (15, 20)])
def test_opcheck(
    dtype: torch.dtype, memory_format: torch.memory_format, size: tuple[int, int]
) -> None:
    """The registration itself: schema, fake tensor, autograd, and tracing with dynamic shapes."""
    logits = make_logits(CASE, dtype).contiguous(memory_format=memory_format)
    for requires_grad in (False, True):
        arguments = (logits.requires_grad_(requires_grad), make_thresholds(5), 0.25, *size, False)
        torch.library.opcheck(torch.ops.cscl_fast.soft_pseudo_labels.default, arguments)
