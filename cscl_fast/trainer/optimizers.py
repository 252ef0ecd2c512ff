"""The optimizers of the players, their implementations, and the decay of their learning rates.

`optimizer.implementation` says who computes the step: PyTorch's fused kernels ("auto" takes them
where the device has them), its foreach or plain loop, or NVIDIA Apex's kernels. All of them
compute one update, equal within float32 rounding, and read each other's state.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cscl_fast.config import ConfigError, OptimizerConfig
from cscl_fast.models import SegmentationModel

Implementation = Literal["auto", "fused", "foreach", "loop", "apex"]
Group = dict[str, Any]

BETAS = (0.9, 0.99)  # of Adam, as the paper has them
EPSILON = 1e-8
FUSED_DEVICES = ("cpu", "cuda")  # with PyTorch's fused SGD and Adam since 2.4
APEX_DEVICES = ("cuda",)


class ApexError(ConfigError):
    """NVIDIA Apex was asked for and cannot be used; the message says what to install instead."""


def model_optimizer(
    model: SegmentationModel, config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """SGD or Adam over the encoder and the (faster) classifier; frozen parameters are left out.

    Raises:
        ConfigError: `config.implementation` cannot be had here; says why and what can.
    """
    groups = [
        _group(part, learning_rate * factor)
        for part, factor in ((model.encoder, 1.0), (model.classifier, config.classifier_factor))
    ]
    if config.name == "adam":
        return _adam(groups, learning_rate, config.weight_decay, config.implementation)
    return _sgd(groups, learning_rate, config)


def player_optimizer(
    module: nn.Module, learning_rate: float, implementation: Implementation = "auto"
) -> torch.optim.Optimizer:
    """Adam (0.9, 0.99), as the paper trains D, T_Q and T_C."""
    return _adam([_group(module, learning_rate)], learning_rate, 0.0, implementation)


def _group(module: nn.Module, learning_rate: float) -> Group:
    learning = [p for p in module.parameters() if p.requires_grad]
    return {"params": learning, "lr": learning_rate, "initial_lr": learning_rate}


def _sgd(groups: list[Group], rate: float, config: OptimizerConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    chosen = resolve(config.implementation, _device(groups))
    if chosen == "apex":
        return _apex("FusedSGD", groups, dampening=0.0, wd_after_momentum=False, **settings)
    return _ready(torch.optim.SGD(groups, **settings, **_switches(chosen)))


def _adam(
    groups: list[Group], rate: float, weight_decay: float, implementation: Implementation
) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": rate,
        "betas": BETAS,
        "eps": EPSILON,
        "weight_decay": weight_decay,
    }
    chosen = resolve(implementation, _device(groups))
    if chosen == "apex":
        # Apex's default is AdamW; PyTorch's Adam adds the weight decay to the gradient.
        return _apex("FusedAdam", groups, adam_w_mode=False, bias_correction=True, **settings)
    return _ready(torch.optim.Adam(groups, **settings, **_switches(chosen)))


# ------------------------------------------------------------------------- which implementation


def resolve(implementation: Implementation, device: torch.device) -> Implementation:
    """What to compute the step with on this device: fused, foreach, loop or apex.

    Raises:
        ConfigError: fused on a device without such kernels.
        ApexError: Apex on a GPU without NVIDIA's Apex, or another package of its name anywhere.
    """
    if implementation == "apex":
        return _resolve_apex(device)
    if implementation == "fused" and device.type not in FUSED_DEVICES:
        raise ConfigError(
            f"optimizer.implementation is fused, and PyTorch has no fused step for device "
            f"{device.type}; use auto or foreach"
        )
    if implementation == "auto":
        return "fused" if device.type in FUSED_DEVICES else "foreach"
    return implementation


def _resolve_apex(device: torch.device) -> Implementation:
    """Apex is for GPUs; so that one command works everywhere, the CPU takes PyTorch's kernels."""
    absent = False
    try:
        apex_optimizers()
    except ModuleNotFoundError:
        absent = True
    if device.type in APEX_DEVICES:
        if absent:
            raise ApexError(
                "optimizer.implementation is apex, and NVIDIA Apex is not installed; "
                f"{_INSTALL_APEX}, or use auto: PyTorch's fused step computes the same"
            )
        return "apex"
    warnings.warn(
        f"optimizer.implementation is apex, which needs a GPU; on device {device.type} PyTorch's "
        "own step, which computes the same, takes its place",
        stacklevel=2,
    )
    return resolve("auto", device)


_INSTALL_APEX = (
    "install it from source, https://github.com/NVIDIA/apex, with its C++ and CUDA extensions"
)


def apex_optimizers() -> Any:
    """The module `apex.optimizers` of NVIDIA's Apex.

    Raises:
        ModuleNotFoundError: there is no package `apex`.
        ApexError: there is one, and it is not NVIDIA's, which alone has `FusedAdam`.
    """
    problem = "it has no apex.optimizers.FusedAdam"
    try:
        module = importlib.import_module("apex.optimizers")
        if hasattr(module, "FusedAdam"):
            return module
    except ModuleNotFoundError as error:
        if error.name == "apex":
            raise
        problem = str(error)
    except Exception as error:  # PyPI's is Python 2: whatever its import may raise
        problem = f"{type(error).__name__}: {error}"
    raise ApexError(
        f"optimizer.implementation is apex, and the package apex here is not NVIDIA's ({problem}); "
        "the one on PyPI is a web toolkit that has nothing to do with it: pip uninstall apex, then "
        f"{_INSTALL_APEX}, or use auto"
    )


def _apex(name: str, groups: list[Group], **settings: Any) -> torch.optim.Optimizer:
    filled = [group for group in groups if group["params"]]  # it looks at each group's first
    try:
        return _ready(getattr(apex_optimizers(), name)(filled, **settings))
    except (RuntimeError, ImportError) as error:
        raise ApexError(
            f"optimizer.implementation is apex, and its {name} cannot be made: {error}; "
            f"{_INSTALL_APEX}, or use auto"
        ) from error


def _switches(implementation: Implementation) -> dict[str, Any]:
    return {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def _device(groups: list[Group]) -> torch.device:
    return next((p.device for g in groups for p in g["params"]), torch.device("cpu"))


# ---------------------------------------------------- what the fused kernels need and do not check


def _ready(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Guard the steps of fused kernels, and let the optimizer read every implementation's state."""
    if optimizer.defaults.get("fused", True):  # Apex's have no such switch
        optimizer.register_step_pre_hook(_before_fused_step)
    optimizer.register_load_state_dict_pre_hook(_translate)
    optimizer.register_load_state_dict_post_hook(_settle)
    return optimizer


def _before_fused_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Gradients in their parameters' memory layout, and a momentum for each of them.

    The kernels walk parameter, gradient and state in the order of memory, whatever their strides
    say: a channels-last weight with a contiguous gradient would be updated with the wrong numbers.
    And they take a momentum for all parameters or for none, uninitialised if a gradient scaler
    skips the first step; a momentum of zeros gives the first step its usual result.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            if not _same_layout(p.grad, p):
                p.grad = torch.empty_like(p).copy_(p.grad)
            if group.get("momentum") and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape keep their elements in one order."""
    if a.stride() == b.stride():
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(one == other for length, one, other in strides if length > 1)


def _translate(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Any implementation's state as this one's, under this one's hyper-parameters.

    Apex counts Adam's steps by group, PyTorch by parameter. Of a saved group count its parameters
    and how far it is; initial learning rate, momentum, weight decay and the implementation's
    switches are those that this optimizer was made with: a run may go on with other ones.

    Raises:
        ValueError: SGD is given Adam's state, or the other way round.
    """
    apex = "fused" not in optimizer.defaults
    groups, by_parameter = [], {key: dict(entry) for key, entry in state["state"].items()}
    _require_same_kind(optimizer, by_parameter)
    for i, saved in enumerate(state["param_groups"]):
        own = optimizer.param_groups[i] if i < len(optimizer.param_groups) else {}
        group = {**own, "params": saved["params"], "lr": saved["lr"]}
        group.pop("step", None)
        count = saved.get("step")
        for entry in (by_parameter[key] for key in group["params"] if key in by_parameter):
            count = entry.pop("step", count)
            if "exp_avg" in entry and not apex:
                entry["step"] = torch.tensor(float(count))
        if apex and count is not None:
            group["step"] = int(count)
        groups.append(group)
    return {"state": by_parameter, "param_groups": groups}


def _require_same_kind(optimizer: torch.optim.Optimizer, state: dict[Any, Group]) -> None:
    names = {name for entry in state.values() for name in entry}
    adam = "betas" in optimizer.defaults
    if ("momentum_buffer" if adam else "exp_avg") in names:
        is_for, is_of = ("Adam", "SGD") if adam else ("SGD", "Adam")
        raise ValueError(f"{is_for} cannot go on with the state of {is_of}")


def _settle(optimizer: torch.optim.Optimizer) -> None:
    """A loaded state in its parameters' memory layout."""
    for p, entry in optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == p.shape and not _same_layout(value, p):
                entry[key] = torch.empty_like(p).copy_(value)


class Optimizers:
    """One optimizer per player, stepped together (joint) or one by one (alternating)."""

    def __init__(
        self,
        players: dict[str, torch.optim.Optimizer],
        *,
        steps: int,
        power: float,
        clip_norm: float = 0.0,
    ) -> None:
        self.players = players
        self.steps = max(steps, 1)
        self.power = power
        self.clip_norm = clip_norm

    def set_progress(self, step: int) -> None:
        """Polynomial decay: rate = initial · (1 − step / steps)^power."""
        factor = max(0.0, 1 - step / self.steps) ** self.power
        for optimizer in self.players.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def zero_grad(self) -> None:
        for optimizer in self.players.values():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None

    def names(self, player: str | None = None) -> list[str]:
        """Whose optimizers are meant: one player's, or with None all of them."""
        return list(self.players) if player is None else [player]

    def gradient_norms(self, player: str | None = None) -> Tensor:  # [players] float32
        """The norm of all gradients of each player; not finite where one of them is not."""
        return torch.stack([self._norm(self.players[name]) for name in self.names(player)])

    @staticmethod
    def _norm(optimizer: torch.optim.Optimizer) -> Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=_device(optimizer.param_groups))
        return nn.utils.get_total_norm(gradients).float()

    def can_refrain(self, player: str | None = None) -> bool:
        """Whether `step` takes `unless`: PyTorch's fused kernels on a GPU do.

        (Those on the CPU do as well, where nothing is gained by not knowing it before.)
        """
        groups = [g for name in self.names(player) for g in self.players[name].param_groups]
        return all(g.get("fused") for g in groups) and _device(groups).type == "cuda"

    def step(self, player: str | None = None, *, unless: Tensor | None = None) -> None:
        """Step one player, or all of them.

        Args:
            unless: scalar float32, 1: the step is to change nothing. Known to the device alone,
                it lets the step wait in line there before the host knows.
        """
        for name in self.names(player):
            optimizer = self.players[name]
            if name == "model" and self.clip_norm > 0:
                parameters = [p for g in optimizer.param_groups for p in g["params"]]
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            if unless is None:
                optimizer.step()
                continue
            optimizer.found_inf = unless  # type: ignore[attr-defined]  # as a gradient scaler does
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.players.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.players.items():
            optimizer.load_state_dict(state[name])
