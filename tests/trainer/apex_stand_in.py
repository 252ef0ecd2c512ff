"""Stand-ins of NVIDIA Apex's optimizers: its signatures, state and arithmetic, without a GPU."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer


def memory(tensor: Tensor) -> Tensor:  # [elements]
    """The elements in the order of memory: the kernels do not look at strides."""
    return tensor.as_strided((tensor.numel(),), (1,))


class FusedAdam(Optimizer):
    """Counts steps by group, asks for a first parameter in each, keeps moments by parameter."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        set_grad_none: bool = True,
    ) -> None:
        assert not amsgrad
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas}
        super().__init__(params, {**defaults, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode
        self.set_grad_none = set_grad_none

    def zero_grad(self) -> None:  # type: ignore[override]  # Apex's takes no argument
        raise AssertionError("gradients are dropped by the trainer")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            _ = group["params"][0].device
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            first_weight, second_weight = 1.0, 1.0
            if group["bias_correction"]:
                first_weight, second_weight = (1 - beta ** group["step"] for beta in group["betas"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                value, gradient = memory(p), memory(p.grad)
                mean, square = memory(state["exp_avg"]), memory(state["exp_avg_sq"])
                decay = group["weight_decay"] * value
                if not self.adam_w_mode:
                    gradient = gradient + decay
                mean.mul_(beta1).add_(gradient * (1 - beta1))
                square.mul_(beta2).add_(gradient * gradient * (1 - beta2))
                update = mean / first_weight / ((square / second_weight).sqrt() + group["eps"])
                value.sub_(group["lr"] * (update + decay if self.adam_w_mode else update))


class FusedSGD(Optimizer):
    """Takes the first step without momentum where the group's last parameter has none yet."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        wd_after_momentum: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "nesterov": nesterov})
        self.wd_after_momentum = wd_after_momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            first = bool(learning) and "momentum_buffer" not in self.state[learning[-1]]
            for p in learning:
                assert p.grad is not None
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                value, gradient = memory(p), memory(p.grad)
                momentum = memory(state["momentum_buffer"])
                decay = group["weight_decay"] * value
                if not self.wd_after_momentum:
                    gradient = gradient + decay
                if first:
                    momentum.copy_(gradient)
                else:
                    momentum.mul_(group["momentum"]).add_(gradient * (1 - group["dampening"]))
                value.sub_(group["lr"] * (momentum + decay if self.wd_after_momentum else momentum))


def install(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """Make `import apex.optimizers` find a module with these members."""
    package, optimizers = types.ModuleType("apex"), types.ModuleType("apex.optimizers")
    for name, member in members.items():
        setattr(optimizers, name, member)
    package.optimizers = optimizers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


def install_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's Apex is here, and works on the CPU as well."""
    install(monkeypatch, FusedAdam=FusedAdam, FusedSGD=FusedSGD)
    monkeypatch.setattr("cscl_fast.trainer.optimizers.APEX_DEVICES", ("cuda", "cpu"))
