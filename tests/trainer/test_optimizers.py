"""One update from every implementation of the optimizers, and the state they hand each other."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import apex_stand_in
import pytest
import torch
from torch import Tensor, nn
from trainer_worlds import TinyModel

from cscl_fast.config import ConfigError, OptimizerConfig
from cscl_fast.train import main
from cscl_fast.trainer.optimizers import (
    ApexError,
    Optimizers,
    model_optimizer,
    player_optimizer,
    resolve,
)

# A step is a handful of float32 operations on values of size 1, in another order in each
# implementation: a few units in the last place, 6e-8 each, over ten steps.
CLOSE = {"rtol": 2e-6, "atol": 1e-6}
PYTORCH = ("auto", "fused", "foreach")
ALL = (*PYTORCH, "apex")


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    apex_stand_in.install_real(monkeypatch)


def make_model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel("tiny", 3).to(memory_format=torch.channels_last)


def make(model: nn.Module, name: str, implementation: str, **more) -> torch.optim.Optimizer:
    config = OptimizerConfig(name=name, implementation=implementation, weight_decay=0.1, **more)  # type: ignore[arg-type]
    return model_optimizer(model, config, 0.05)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on gradients that are contiguous, whatever the layout of the parameters."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_implementation_computes_the_loops_update(name: str, implementation: str) -> None:
    reference, model = make_model(), make_model()
    train(reference, make(reference, name, "loop"), range(10))
    train(model, make(model, name, implementation), range(10))
    torch.testing.assert_close(values(model), values(reference), **CLOSE)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_apex_gets_the_settings_that_make_it_pytorchs(name: str) -> None:
    optimizer = make(make_model(), name, "apex", momentum=0.8)
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1 and group["lr"] == 0.05
    if name == "sgd":
        assert isinstance(optimizer, apex_stand_in.FusedSGD)
        assert (group["momentum"], group["dampening"], group["nesterov"]) == (0.8, 0.0, False)
        assert optimizer.wd_after_momentum is False
    else:
        assert isinstance(optimizer, apex_stand_in.FusedAdam)
        assert group["betas"] == (0.9, 0.99) and group["eps"] == 1e-8
        assert group["bias_correction"] is True and optimizer.adam_w_mode is False
    player = player_optimizer(nn.Linear(2, 2), 0.1, "apex")
    assert isinstance(player, apex_stand_in.FusedAdam)
    assert player.adam_w_mode is False and player.param_groups[0]["weight_decay"] == 0.0


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("after", ("loop", *ALL))
@pytest.mark.parametrize("before", ("loop", "fused", "foreach", "apex"))
def test_each_goes_on_with_the_state_of_another(name: str, before: str, after: str) -> None:
    reference, model = make_model(), make_model()
    train(reference, make(reference, name, "loop"), range(6))
    first = make(model, name, before)
    train(model, first, range(3))
    saved = copy.deepcopy(first.state_dict())
    second = make(model, name, after)
    second.load_state_dict(saved)
    for group in second.param_groups:
        assert group.get("fused", False) == (after in ("auto", "fused"))
        assert group.get("foreach", False) == (after == "foreach")
    train(model, second, range(3, 6))
    torch.testing.assert_close(values(model), values(reference), **CLOSE)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("implementation", ("loop", *ALL))
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_hyper_parameters_are_the_new_optimizers_not_the_states(name, implementation) -> None:
    model = make_model()
    first = make(model, name, implementation)
    train(model, first, range(2))
    momentum = {"momentum": 0.5} if name == "sgd" else {}
    config = OptimizerConfig(name=name, implementation=implementation, weight_decay=0.2, **momentum)
    second = model_optimizer(model, config, 0.01)  # type: ignore[arg-type]
    Optimizers({"model": first}, steps=10, power=1.0).set_progress(2)
    saved = copy.deepcopy(first.state_dict())
    second.load_state_dict(saved)
    assert [group["lr"] for group in second.param_groups] == pytest.approx([0.04, 0.4])  # so far
    Optimizers({"model": second}, steps=10, power=1.0).set_progress(2)
    for group, factor in zip(second.param_groups, (1, 10), strict=True):
        assert group["lr"] == pytest.approx(0.008 * factor)
        assert group["weight_decay"] == 0.2
        assert name == "adam" or group["momentum"] == 0.5
    moments = [entry for _, entry in sorted(second.state_dict()["state"].items())]
    for found, entry in zip(moments, saved["state"].values(), strict=True):
        assert all(torch.equal(found[k], v) for k, v in entry.items() if v is not None)


@pytest.mark.parametrize(("before", "after"), [("sgd", "adam"), ("adam", "sgd")])
def test_another_kind_of_optimizer_cannot_take_the_state(before: str, after: str) -> None:
    model = make_model()
    first = make(model, before, "auto")
    train(model, first, range(1))
    with pytest.raises(ValueError, match="cannot go on with the state of"):
        make(model, after, "auto").load_state_dict(first.state_dict())


@pytest.mark.parametrize("implementation", ["loop", *PYTORCH])
def test_a_state_in_another_memory_layout(implementation: str) -> None:
    """As in a checkpoint whose tensors were made contiguous."""
    reference, model = make_model(), make_model()
    train(reference, make(reference, "adam", implementation), range(4))
    first = make(model, "adam", implementation)
    train(model, first, range(2))
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].contiguous()
    second = make(model, "adam", implementation)
    second.load_state_dict(saved)
    train(model, second, range(2, 4))
    assert all(map(torch.equal, values(model), values(reference)))


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_frozen_parameters_stay_out_and_groups_may_be_empty(name, implementation) -> None:
    model = make_model()
    model.encoder.requires_grad_(False)
    optimizer = make(model, name, implementation)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.classifier.parameters()}
    before = values(model.encoder)
    train(model, optimizer, range(2))
    assert all(map(torch.equal, values(model.encoder), before))

    player = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    player[0].requires_grad_(False)
    assert len(player_optimizer(player, 0.1, implementation).param_groups[0]["params"]) == 2


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("implementation", ALL)
def test_a_parameter_may_get_its_first_gradient_later(implementation: str) -> None:
    results = []
    for chosen in ("loop", implementation):
        model = make_model()
        optimizer = make(model, "sgd", chosen)
        late = model.encoder[0].weight.requires_grad_(False)
        train(model, optimizer, range(1))
        late.requires_grad_(True)
        train(model, optimizer, range(1, 3))
        results.append(values(model))
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("implementation", ("loop", *ALL))
def test_a_gradient_scaler_skips_and_scales(name: str, implementation: str) -> None:
    """The first step of all is skipped, as it often is with float16; then it goes on as ever."""
    reference, model = make_model(), make_model()
    train(reference, make(reference, name, "loop"), range(3))
    optimizer = make(model, name, implementation)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = values(model)
    for step in (-1, 0, 1, 2):
        scale = float(scaler.scale(torch.ones(())))
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * scale
        if step < 0:
            model.classifier.weight.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if step < 0:
            assert all(map(torch.equal, values(model), before))
            assert scaler.get_scale() == 512.0
    torch.testing.assert_close(values(model), values(reference), **CLOSE)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("implementation", ALL)
def test_optimizers_drop_gradients_of_every_implementation(implementation: str) -> None:
    model = make_model()
    optimizers = Optimizers({"model": make(model, "adam", implementation)}, steps=4, power=1.0)
    train(model, optimizers.players["model"], range(1))
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizers.set_progress(2)
    assert optimizers.players["model"].param_groups[0]["lr"] == pytest.approx(0.025)


def test_auto_and_devices_without_kernels() -> None:
    assert resolve("auto", torch.device("cpu")) == "fused"
    assert resolve("auto", torch.device("cuda", 1)) == "fused"
    assert resolve("auto", torch.device("meta")) == "foreach"
    assert resolve("loop", torch.device("cpu")) == "loop"
    with pytest.raises(ConfigError, match=r"optimizer\.implementation is fused.*device meta.*auto"):
        resolve("fused", torch.device("meta"))


def test_apex_on_the_cpu_is_pytorchs_step(monkeypatch: pytest.MonkeyPatch) -> None:
    apex_stand_in.install(monkeypatch, FusedAdam=object)
    with pytest.warns(UserWarning, match="apex, which needs a GPU; on device cpu PyTorch's"):
        optimizer = make(make_model(), "adam", "apex")
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["fused"]


def test_apex_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cscl_fast.trainer.optimizers.importlib.import_module", _no_apex)
    with pytest.raises(ApexError, match="NVIDIA Apex is not installed; install it from source"):
        resolve("apex", torch.device("cuda"))
    with pytest.warns(UserWarning, match="needs a GPU"):
        assert resolve("apex", torch.device("cpu")) == "fused"


def _no_apex(name: str) -> types.ModuleType:
    raise ModuleNotFoundError("No module named 'apex'", name="apex")


def _without_optimizers(name: str) -> types.ModuleType:
    raise ModuleNotFoundError("No module named 'apex.optimizers'", name="apex.optimizers")


def _python_2(name: str) -> types.ModuleType:
    raise SyntaxError("Missing parentheses in call to 'print'")


@pytest.mark.parametrize("found", [_without_optimizers, _python_2, None])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_web_toolkit_of_that_name_is_refused(monkeypatch, found, device) -> None:
    if found is None:
        apex_stand_in.install(monkeypatch, Adam=object)
    else:
        monkeypatch.setattr("cscl_fast.trainer.optimizers.importlib.import_module", found)
    with pytest.raises(ApexError, match=r"not NVIDIA's.*web toolkit.*pip uninstall apex.*source"):
        resolve("apex", torch.device(device))


def test_an_apex_without_its_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbuilt:
        def __init__(self, *args, **kwargs) -> None:
            raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    apex_stand_in.install_real(monkeypatch)
    monkeypatch.setattr(sys.modules["apex.optimizers"], "FusedAdam", Unbuilt)
    with pytest.raises(ApexError, match="requires cuda extensions; install it from source"):
        player_optimizer(nn.Linear(2, 2), 0.1, "apex")


def test_a_run_refuses_the_toolkit_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apex_stand_in.install(monkeypatch, Adam=object)
    run = tmp_path / "run"
    assert main(["--optimizer", "apex", "--device", "cpu", "--run", str(run)]) != 0
    assert "web toolkit" in " ".join(capsys.readouterr().err.split())
    assert not run.exists()
