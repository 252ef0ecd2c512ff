"""Several processes, one for each GPU: what they have to agree on, and how they end together.

`torchrun --nproc-per-node N -m cscl_fast.train -- OPTIONS` starts N processes, which find one
another by torchrun's environment. Each reads its share of every batch and does the same steps.

A step's objective is that of one process with all the batches. Each of its losses is a mean, over
labelled pixels, kept ones, rewarded locations; a process's batch has a share in it, its count over
the sum of all counts (`Players.counts`), and

    objective = Σ over the processes, Σ over the losses, share · loss

so that the gradients of the parameters, each process's own from its shares, have to be added up,
not averaged: `Shared` has DistributedDataParallel do that, while the backward pass still runs. A
loss that is made of sums over the processes itself (`sum`: class centroids) is the same in all of
them and enters with the share 1 / count.

Sums of small tensors are taken in the order of the ranks, so that they are the same to the last
bit in every process and every run.
"""

from __future__ import annotations

import datetime
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cscl_fast.config import Config, ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# What PyTorch's errors of a collective have in their text; it gives most of them no type.
_SIGNS_OF_LOSS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "socket")


class LostProcessError(RuntimeError):
    """Another process of this run died or does not answer; the message says what to look at."""


def count_from_environment() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


class Processes:
    """The processes of a run, from the point of view of one of them.

    Args:
        rank: which one this is, from 0.
        count: how many there are; 1 talks to nobody and needs no torch.distributed.
        local_rank: which one it is on this machine: the number of its GPU.
        timeout: seconds to wait for another one.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local_rank: int = 0, *, timeout: float = 600.0
    ) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self.timeout = timeout
        self.how_to_go_on = f"{self.command} --resume RUN_FOLDER"  # for the messages

    @staticmethod
    def alone() -> Processes:
        """One process."""
        return Processes()

    @staticmethod
    def from_environment(device: str = "auto", *, timeout: float = 600.0) -> Processes:
        """What torchrun's environment says; without one, one process.

        Joins the others: over gloo, and on GPUs over NCCL. A GPU is then this process's own.

        Args:
            device: the key `device` of the configuration.
            timeout: seconds that a process waits for another one (`distributed_timeout`).

        Raises:
            ConfigError: several processes cannot run on the device.
            LostProcessError: the others did not come.
        """
        count = count_from_environment()
        if count == 1:
            return Processes(timeout=timeout)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        on_gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        if on_gpus:
            if local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"process {local_rank + 1} of this machine finds "
                    f"{torch.cuda.device_count()} GPU(s), and each needs one of its own: give "
                    "torchrun a smaller --nproc-per-node, or --device cpu"
                )
            torch.cuda.set_device(local_rank)
        elif device not in ("auto", "cpu"):
            raise ConfigError(
                f"device is {device}; with {count} processes it is auto, cpu or cuda, and each "
                "process takes the GPU of its own number"
            )
        self = Processes(int(os.environ["RANK"]), count, local_rank, timeout=timeout)
        with self.watching("start"):
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                timeout=datetime.timedelta(seconds=timeout),
            )
        return self

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.count > 1

    @property
    def command(self) -> str:
        """What starts as many processes of the training; its options follow."""
        if not self.several:
            return "python -m cscl_fast.train"
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        machines = f"--nnodes {self.count // here} " if here < self.count else ""
        return f"torchrun {machines}--nproc-per-node {here} -m cscl_fast.train --"

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.count}"

    # ------------------------------------------------------------------------ what is added up

    def sum(self, value: Tensor) -> Tensor:
        """Σ over the processes of a tensor of one shape, the same to the last bit in each.

        Differentiable, where what is computed from the sum is the same in every process, with the
        same share: the gradients that come back from all of them are then `count` times this one's.
        """
        return _Sum.apply(value, self) if self.several else value

    def add_up(self, numbers: dict[str, float]) -> dict[str, float]:
        """Σ over the processes of each of some numbers, which have the same names in all."""
        if not self.several:
            return numbers
        total = self.sum(torch.tensor(list(numbers.values()), dtype=torch.float64))
        return dict(zip(numbers, total.tolist(), strict=True))

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float tensors by their averages over the processes, in one message."""
        if not self.several or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        flat = self.sum(flat) / self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """What each process holds, in the order of the ranks: anything that can be pickled."""
        if not self.several:
            return [value]
        packed = io.BytesIO()
        torch.save(value, packed)  # pickle alone does not take every type of tensor
        found: list[Any] = [None] * self.count
        with self.watching("an exchange"):
            distributed.all_gather_object(found, packed.getvalue())
        return [torch.load(io.BytesIO(one), weights_only=False) for one in found]

    def main_does(self, action: Callable[[], Result]) -> Result:
        """What the first process finds by `action`, for all. If that fails, they all end."""
        if not self.several:
            return action()
        result, error = None, None
        if self.is_main:
            try:
                result = action()
            except Exception as caught:
                error = caught
        failed, found = self.gather((error is not None, result) if self.is_main else None)[0]
        if error is not None:
            raise error
        if failed:
            with suppress(LostProcessError):
                self.barrier()  # until the first one has said what is wrong, and ended
            self.end_at_once(1)
        answer: Result = found
        return answer

    @torch.no_grad()
    def copy_from_main(self, module: nn.Module) -> None:
        """Parameters and buffers of `module` as the first process has them."""
        if self.several:
            with self.watching("copying a network"):
                for tensor in module.state_dict().values():
                    distributed.broadcast(tensor, 0)

    def any(self, flag: bool) -> bool:
        """Whether one of them says so: all get the same answer, at the same place."""
        if not self.several:
            return flag
        answer = torch.tensor([int(flag)])
        with self.watching("the end of a step"):
            distributed.all_reduce(answer, distributed.ReduceOp.MAX)
        return bool(answer)

    def barrier(self) -> None:
        """Wait for all."""
        self.any(False)

    # -------------------------------------------------------------------------------- the end

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Errors of the communication inside become `LostProcessError`."""
        try:
            yield
        except LostProcessError:
            raise
        except (RuntimeError, TimeoutError) as error:
            if not is_sign_of_loss(error):
                raise
            raise LostProcessError(
                f"lost another process in {what}: it ended, or did not answer for "
                f"{self.timeout:g} s (distributed_timeout). If it could leave a message of its "
                "own, it stands above; if not, the system may have ended it (out of memory: "
                "`dmesg | tail`). This process ends too. Go on from the last checkpoint with:\n"
                f"  {self.how_to_go_on}\n"
                f"PyTorch says: {str(error).partition(chr(10))[0][:200]}"
            ) from error

    def close(self) -> None:
        """Leave the others, after the last step of all."""
        if self.several and distributed.is_initialized():
            self.barrier()
            distributed.destroy_process_group()

    def end_at_once(self, status: int) -> NoReturn:
        """End while others end, too: Python's orderly end may abort in gloo's threads then."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_sign_of_loss(error: BaseException) -> bool:
    """Whether an error is one of the communication between processes."""
    if isinstance(error, distributed.DistError | TimeoutError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_LOSS)


# PyTorch renames the option.
_BUFFERS_STAY: dict[str, Any] = {
    name: False
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
}
if len(_BUFFERS_STAY) == 2:
    del _BUFFERS_STAY["broadcast_buffers"]


class Shared:
    """Computations whose backward pass leaves in `modules` the gradients' sums over the processes.

    Making one gives all processes the parameters of the first. With one process it does nothing.

    A module for each player, and not one for all: an update of D then sends D's gradients only.
    """

    def __init__(self, processes: Processes, *modules: nn.Module) -> None:
        self.processes = processes
        self.modules = modules
        self.checked = False
        self.parallel: DistributedDataParallel | None = None
        learning = any(p.requires_grad for module in modules for p in module.parameters())
        if processes.several and learning:
            with processes.watching("the first copy of the weights"):
                self.parallel = DistributedDataParallel(
                    _Computation(modules),
                    gradient_as_bucket_view=True,  # no second copy of the gradients
                    **_BUFFERS_STAY,  # running statistics are averaged, not the first's
                )
            self.parallel.register_comm_hook(None, _add_up)

    def __call__(
        self,
        compute: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """`compute(*arguments)`, all of whose results' tensors have to be used by one backward."""
        if self.parallel is None:
            return compute(*arguments, **named)
        with self.processes.watching("a forward pass"):
            result: Result = self.parallel(compute, *arguments, **named)
        return result

    def require_all(self) -> None:
        """Call after the first backward pass: DistributedDataParallel waits for every gradient.

        Raises:
            ConfigError: parameters that are to learn took no part in the losses.
        """
        if self.parallel is None or self.checked:
            return
        idle = [
            name
            for module in self.modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        if idle:
            raise ConfigError(
                f"{len(idle)} parameters take no part in the losses, which several processes "
                f"cannot have: freeze them with requires_grad_(False). {', '.join(idle[:5])}"
            )
        self.checked = True

    def alone(self) -> AbstractContextManager[None]:
        """Inside, gradients stay with their process, to be added up after the next call's."""
        return nullcontext() if self.parallel is None else self.parallel.no_sync()


class _Computation(nn.Module):
    """Parameters, and whatever is computed with them, as DistributedDataParallel wants it."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.learning = nn.ModuleList(modules)

    def forward(self, compute: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return compute(*arguments, **named)


def synchronise_batchnorm(model: nn.Module, config: Config, processes: Processes) -> None:
    """With `sync_batchnorm`, normalise by the batches of all processes; in place.

    Raises:
        ConfigError: the model is not on a GPU, where PyTorch has no such layer.
    """
    if not config.sync_batchnorm:
        return
    if next(model.parameters()).device.type != "cuda":
        raise ConfigError(
            "sync_batchnorm is set, and PyTorch synchronises batch normalisation on GPUs only: "
            "leave it out on the CPU (adaptation.bn frozen needs no batch statistics)"
        )
    if processes.several:
        for module in list(model.modules()):
            for name, layer in module.named_children():
                is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
                if is_norm and not isinstance(layer, nn.SyncBatchNorm):
                    setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))


def running_averages(model: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch normalisations of `model`."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = [statistics for m in layers for statistics in (m.running_mean, m.running_var)]
    return [statistics for statistics in found if statistics is not None]


def _add_up(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients are added up, where DistributedDataParallel would take their average."""
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


_add_up.__annotations__.clear()  # PyTorch would look at them, and they are strings here


class _Sum(torch.autograd.Function):
    """Σ over the processes; its adjoint adds up the gradients, which are the same in all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        ctx.count = processes.count
        value = value.detach().contiguous()
        found = value.new_empty((processes.count, *value.shape))
        with processes.watching("a sum"):
            distributed.all_gather(list(found.unbind()), value)
        total = found[0].clone()
        for other in found[1:]:
            total += other
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.count, None
