"""Choosing a backend: `use_backend`, CSCL_FAST_BACKEND, and what `auto` takes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

import cscl_fast
from cscl_fast import _library, backends
from cscl_fast.backends import select, use_backend, why_unavailable

FLOAT = torch.zeros(1, 2, 3, 3)
Reload = Callable[..., None]


@pytest.fixture(autouse=True)
def automatic() -> Iterator[None]:
    with use_backend("auto"):
        yield


@pytest.fixture
def reload_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reload]:
    """Imports the registry anew, as in a process with this library and this environment."""

    def reload(library: _library.Library | None = None, environment: str | None = None) -> None:
        if library is not None:
            monkeypatch.setattr(_library, "load", lambda: library)
        if environment is not None:
            monkeypatch.setenv("CSCL_FAST_BACKEND", environment)
        importlib.reload(backends)

    yield reload
    monkeypatch.undo()
    importlib.reload(backends)


def test_use_backend_is_exported() -> None:
    assert cscl_fast.use_backend is backends.use_backend


def test_at_once_and_as_a_block() -> None:
    use_backend("reference")
    assert backends.current_backend() == "reference"
    with use_backend("cpu"):
        assert backends.current_backend() == "cpu"
        with use_backend("auto"):
            assert backends.current_backend() == "auto"
        assert backends.current_backend() == "cpu"
    assert backends.current_backend() == "reference"


def test_a_block_restores_after_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backends.current_backend() == "auto"


@pytest.mark.parametrize(("name", "guess"), [("cdua", "cuda"), ("reference_", "reference")])
def test_unknown_backend(name: str, guess: str) -> None:
    with pytest.raises(ValueError, match=f"no backend '{name}'.*reference, cpu.*mean '{guess}'"):
        use_backend(name)
    assert backends.current_backend() == "auto"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_missing_backend(name: str) -> None:
    if why_unavailable(name) is None:
        pytest.skip(f"{name} is there")
    with pytest.raises(RuntimeError, match=f"backend '{name}' is not available: .*Use auto"):
        use_backend(name)
    assert name not in backends.available()


def test_why_unavailable() -> None:
    assert why_unavailable("reference") is None
    assert why_unavailable("cpu") is None
    with pytest.raises(ValueError, match="no backend 'gpu'"):
        why_unavailable("gpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_takes_the_kernel_that_is_there(dtype: torch.dtype) -> None:
    assert select("soft_pseudo_labels", FLOAT.to(dtype)) == "cpu"


def test_auto_takes_the_reference_elsewhere() -> None:
    assert select("soft_pseudo_labels", FLOAT.double()) == "reference"
    assert select("soft_pseudo_labels", FLOAT.to("meta")) == "reference"
    for operator in backends.OPERATORS:
        if operator not in backends.kernels("cpu"):
            assert select(operator, FLOAT) == "reference"


def test_forced_reference() -> None:
    with use_backend("reference"):
        assert select("soft_pseudo_labels", FLOAT) == "reference"


def test_forced_cpu_is_completed_by_the_reference() -> None:
    with use_backend("cpu"):
        assert select("soft_pseudo_labels", FLOAT) == "cpu"
        for operator in backends.OPERATORS:
            if operator not in backends.kernels("cpu"):
                assert select(operator, FLOAT) == "reference"


def test_forced_cpu_refuses_what_it_does_not_take() -> None:
    with use_backend("cpu"):
        with pytest.raises(TypeError, match=r"features is torch\.float64; .* needs float32"):
            select("class_centroids", FLOAT.double(), "features")
        with pytest.raises(ValueError, match=r"logits is on meta; .* needs it on the CPU"):
            select("soft_pseudo_labels", FLOAT.to("meta"))


def test_operators_are_those_of_the_public_interface() -> None:
    public = {name for name in cscl_fast.ops.__all__ if name[0].islower()}
    assert set(backends.OPERATORS) == public
    assert set(backends.kernels("cpu")) <= public
    assert backends.kernels("reference") == backends.OPERATORS


class OnDevice:
    """As much of a tensor as `select` looks at: none of the devices has to be there."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Backends that are there, with kernels of every operator, and no others."""

    def pretend(*names: str) -> None:
        missing = {name: "pretended" for name in backends.BACKENDS if name not in names}
        missing.pop("reference", None)
        monkeypatch.setattr(backends, "_missing", missing)
        every = dict.fromkeys(names, backends.OPERATORS)
        monkeypatch.setattr(backends, "_kernels", {**backends._kernels, **every})
        monkeypatch.setitem(backends._DEVICES, "triton", "cuda")

    return pretend


@pytest.mark.parametrize(
    ("there", "device", "chosen"),
    [
        (("cpu", "cuda", "triton"), "cuda", "cuda"),
        (("cpu", "triton"), "cuda", "triton"),  # no CUDA compiler at install time
        (("cpu",), "cuda", "reference"),
        (("cpu", "cuda", "triton"), "cpu", "cpu"),
        (("cuda", "triton"), "cpu", "reference"),
        (("cpu", "cuda", "triton"), "meta", "reference"),
        (("cpu", "cuda", "triton"), "mps", "reference"),
    ],
)
@pytest.mark.parametrize("operator", backends.OPERATORS)
def test_auto_takes_the_best_for_the_device(
    there: tuple[str, ...],
    device: str,
    chosen: str,
    operator: str,
    pretend: Callable[..., None],
) -> None:
    pretend(*there)
    assert select(operator, OnDevice(device)) == chosen
    assert select(operator, OnDevice(device, torch.float64)) == "reference"


def test_auto_leaves_an_operator_without_a_kernel_to_the_next(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("cpu", "cuda", "triton")
    monkeypatch.setitem(backends._kernels, "cuda", ("transfer_reward",))
    assert select("transfer_reward", OnDevice("cuda")) == "cuda"
    assert select("soft_pseudo_labels", OnDevice("cuda")) == "triton"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_forced_gpu_backend_refuses_what_it_does_not_take(
    name: str, pretend: Callable[..., None]
) -> None:
    pretend("cpu", "cuda", "triton")
    with use_backend(name):
        assert select("soft_pseudo_labels", OnDevice("cuda")) == name
        with pytest.raises(ValueError, match=f"logits is on cpu; the backend '{name}' needs.*GPU"):
            select("soft_pseudo_labels", OnDevice("cpu"))
        with pytest.raises(TypeError, match=f"float64; the backend '{name}' needs float32"):
            select("soft_pseudo_labels", OnDevice("cuda", torch.float64))


def test_cuda_says_why_it_is_not_there() -> None:
    why = why_unavailable("cuda")
    if why is None:
        pytest.skip("cuda is there")
    module = backends.library_module()
    assert module is not None
    if "built for" in module.build_info()["cuda"]:  # the kernels are, a GPU is not
        assert "PyTorch finds no GPU here" in why or "built without CUDA" in why
    else:
        assert "the kernel library was built without them" in why
        assert "CSCL_FAST_CUDA=1 insists" in why


@pytest.mark.parametrize("name", ["reference", "cpu", "auto"])
def test_environment(name: str, reload_backends: Reload) -> None:
    reload_backends(environment=name)
    assert backends.current_backend() == name
    assert backends.environment_problem() is None


@pytest.mark.parametrize(
    ("name", "why"), [("refrence", "Did you mean 'reference'"), ("triton", "not available")]
)
def test_wrong_environment_is_said_at_the_first_use(
    name: str, why: str, reload_backends: Reload
) -> None:
    if name in backends.available():
        pytest.skip(f"{name} is there")
    reload_backends(environment=name)
    with pytest.raises(RuntimeError, match=f"CSCL_FAST_BACKEND is '{name}': .*{why}"):
        backends.select("soft_pseudo_labels", FLOAT)
    with backends.use_backend("reference"):  # a choice made in the program wins
        assert backends.select("soft_pseudo_labels", FLOAT) == "reference"
    with pytest.raises(RuntimeError, match="CSCL_FAST_BACKEND"):
        backends.select("soft_pseudo_labels", FLOAT)


def test_without_a_library_auto_warns_once_and_uses_the_reference(reload_backends: Reload) -> None:
    reload_backends(_library.Library(None, "it is not installed. Run X.", built=False))
    with pytest.warns(UserWarning, match=r"plain PyTorch, .* it is not installed\. Run"):
        assert backends.select("soft_pseudo_labels", FLOAT) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select("soft_pseudo_labels", FLOAT) == "reference"
    with pytest.raises(RuntimeError, match="'cpu' is not available: it is not installed"):
        backends.use_backend("cpu")
    with pytest.raises(RuntimeError, match="it is not installed"):
        backends.library()


def test_a_library_that_does_not_fit_is_never_passed_over(reload_backends: Reload) -> None:
    module = backends.library_module()
    reload_backends(_library.Library(module, "it is stale. Run X.", built=True))
    with pytest.raises(RuntimeError, match=r"it is stale\. Run X"):
        backends.select("soft_pseudo_labels", FLOAT)
    with pytest.raises(RuntimeError, match="it is stale"):  # nor for operators without a kernel
        backends.select("transfer_reward", FLOAT)
    with backends.use_backend("reference"):
        assert backends.select("soft_pseudo_labels", FLOAT) == "reference"
