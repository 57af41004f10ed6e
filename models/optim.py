"""Several optimizer steps in one `training_step`, indistinguishable from one step each but for their cost."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, TypedDict

import torch
import torch.distributed
from annotated_types import Ge, Gt, Le, Lt
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from models.dropout import RowDropout, RowSeeds
from models.fused import FusedUpdate

Schedule = Literal["constant", "cosine"]
Batch = Mapping[str, Any]


class Recipe(TypedDict):
    """How a network is trained, whatever it is.

    Attributes:
        lr: peak learning rate of AdamW.
        weight_decay: decoupled weight decay of matrices.
        warmup_share: share of all steps in which the rate rises linearly; if any, it rises no faster than in as many
            steps as the optimizer has in `least_warmup`, however few there are.
        schedule: what the rate does after that.
        gradient_clip: largest L2 norm of the gradient; null for none.
        ema_decay: decay per step of the averaged weights that are evaluated and shipped; null for none.
        compile: torch.compile the network.
    """

    lr: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    warmup_share: Annotated[float, Ge(0), Le(1)]
    schedule: Schedule
    gradient_clip: Annotated[float, Gt(0)] | None
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None
    compile: bool


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: Schedule, least_warmup: int = 1
) -> float:
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up, then constant or half a cosine.

    It rises no faster than in `least_warmup` steps: where all are fewer it does not come to its peak.
    """
    usual = _usual_rate(step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
    return min(usual, peak * (step + 1) / least_warmup)


def _usual_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: Schedule) -> float:
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters in two groups: matrices are decayed; biases, scales and embeddings' vectors are not."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(network: nn.Module, options: Recipe) -> torch.optim.Optimizer:
    """Return AdamW, fused, over a network."""
    return torch.optim.AdamW(parameter_groups(network, options["weight_decay"]), lr=options["lr"], fused=True)


def adamw_by_depth(
    network: nn.Module, options: Recipe, *, layer_decay: float, depth: Callable[[str], int]
) -> torch.optim.Optimizer:
    """Return AdamW, fused, whose rate is lower the deeper a layer lies; `depth` is told by a parameter's name."""
    alike: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            alike.setdefault((depth(name), parameter.ndim < 2), []).append(parameter)
    groups = [
        {
            "params": alike[level, is_plain],
            "weight_decay": 0.0 if is_plain else options["weight_decay"],
            "lr_scale": layer_decay**level,
        }
        for level, is_plain in sorted(alike)  # the head's first: its rate is what is told
    ]
    return torch.optim.AdamW(groups, lr=options["lr"], fused=True)


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole training; Lightning's own estimate counts calls."""
    if trainer.max_steps >= 0:
        return trainer.max_steps
    loader: Any = trainer.train_dataloader
    num_calls = int(trainer.num_training_batches)
    per_epoch: int = loader.num_batches if num_calls == len(loader) else num_calls * loader.batches_per_call
    return per_epoch * (trainer.max_epochs or 1)


class Steps:
    """Takes one optimizer step per mini-batch of a call: gradients, clipping, schedule, AdamW, moving average.

    The random state of step n is seeded by (seed, n), so that dropout needs no saved generator: a resumed run draws
    what an uninterrupted one would, and so does a run on another number of ranks (`models.dropout`).

    Args:
        module: the LightningModule in training (manual optimization).
        optimizer: the raw torch optimizer over the parameters of `network`.
        network: what is trained.
        average: an exponential moving average of `network`, updated in place, or None.
        decay: the average's decay per step.
        clip: the largest L2 norm of the gradient, or None.
        schedule: step (from 0) to learning rate.
        seed: the run's seed.
    """

    def __init__(
        self,
        module: LightningModule,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        *,
        average: nn.Module | None,
        decay: float,
        clip: float | None,
        schedule: Callable[[int], float],
        seed: int,
    ) -> None:
        self.module, self.optimizer, self.clip, self.schedule, self.seed = module, optimizer, clip, schedule, seed
        self.update = FusedUpdate(optimizer)
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        pairs = [] if average is None else zip(average.parameters(), network.parameters(), strict=True)
        self.averages: list[Tensor] = [mean for mean, trained in pairs if trained.requires_grad]
        self.random = [layer for layer in network.modules() if isinstance(layer, RowDropout | RowSeeds)]
        self.decay = decay
        # bf16 where the strategy asks for gradients of half the bytes
        dtype = getattr(module.trainer.strategy, "gradient_dtype", None)
        self.reduce = GradientSum(self.parameters, dtype=dtype) if is_distributed() else None

    @classmethod
    def of(cls, module: LightningModule, network: nn.Module, average: nn.Module | None, options: Recipe) -> "Steps":
        """Bind a module's optimizer, schedule and average into one loop over mini-batches, as training starts."""
        total = total_steps(module.trainer)
        if isinstance(module.trainer.model, DistributedDataParallel):
            # Steps reduces; DDP's hooks would reduce some of the backward passes again.
            module.trainer.model.require_backward_grad_sync = False
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        least: int = getattr(optimizer, "least_warmup", 1) if options["warmup_share"] else 1
        return cls(
            module,
            optimizer,
            network,
            average=average,
            decay=options["ema_decay"] or 0.0,
            clip=options["gradient_clip"],
            schedule=lambda step: learning_rate(
                step,
                peak=options["lr"],
                warmup_steps=int(options["warmup_share"] * total),
                total_steps=total,
                schedule=options["schedule"],
                least_warmup=least,
            ),
            seed=torch.initial_seed(),
        )

    @property
    def seconds_reducing(self) -> float:
        """Time spent in averaging gradients over ranks, waiting included."""
        return 0.0 if self.reduce is None else self.reduce.seconds

    def take(self, batches: Iterable[Batch], loss_of: Callable[[Batch], Tensor]) -> Tensor:
        """Take one step per mini-batch, in order, up to the trainer's `max_steps`.

        Returns the losses of the global mini-batches, [steps], the same on every rank.
        """
        trainer = self.module.trainer
        first = trainer.global_step
        if trainer.max_steps >= 0:
            batches = islice(batches, trainer.max_steps - first)
        losses = []
        for step, batch in enumerate(batches, start=first):
            self._seed(step)
            losses.append(self._backward(batch, loss_of))
            self._step(step)
        # Lightning counts calls of its own optimizer wrapper, which costs as much as a small model's step.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += len(losses)
            tracker.completed += len(losses)
        return torch.stack(losses)

    def _seed(self, step: int) -> None:
        value = (self.seed * 1_000_003 + step) * 1_009
        if self.parameters[0].is_cuda:
            torch.cuda.manual_seed(value)
        else:
            torch.default_generator.manual_seed(value)

    def _backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor]) -> Tensor:
        """Leave the gradient of the global mini-batch in the parameters; return its loss."""
        if self.reduce is None:
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        num_rows, global_rows = len(batch["target"]), batch["global_rows"]
        for layer in self.random:
            layer.rows = (self.reduce.rank, self.reduce.world_size, global_rows)
        loss = loss_of(batch) * (num_rows / global_rows)
        (loss * self.reduce.factor).backward()
        # The last mini-batch of an epoch may have fewer rows than there are ranks: no rows, no gradient, a loss of NaN.
        return self.reduce(loss.detach() if num_rows else torch.zeros_like(loss))

    def _step(self, step: int) -> None:
        if self.clip is not None:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads, foreach=True)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm, foreach=True)
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.update()
        for parameter in self.parameters:  # Optimizer.zero_grad takes 30 microseconds for the same
            parameter.grad = None
        if self.averages:
            with torch.no_grad():
                # Warms up so that the first steps do not linger: the factor of torch's and TensorFlow's averages.
                decay = min(self.decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(self.averages, self.parameters, 1.0 - decay)


class GradientSum:
    """Adds up the gradients, and the loss, of all ranks in one flat all-reduce; each has weighted its own by its rows.

    DDP's reducer expects one backward per forward through the wrapped module; here there are several. FSDP2 averages
    sharded gradients itself, in the backward pass: `factor` undoes its division, and only the loss is left.

    Args:
        parameters: those whose gradients are added up.
        dtype: what travels; None for the gradients' own.

    Attributes:
        seconds: time spent so far, waiting for other ranks included; on a GPU only that of the launches.
    """

    def __init__(self, parameters: Sequence[Tensor], *, dtype: torch.dtype | None) -> None:
        self.parameters, self.dtype = parameters, dtype
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.is_sharded = isinstance(parameters[0], DTensor)
        self.factor = float(self.world_size) if self.is_sharded else 1.0
        self.seconds = 0.0

    def __call__(self, loss: Tensor) -> Tensor:
        """Replace the gradients by their sum over ranks; return that of the losses, a scalar."""
        start = time.perf_counter()
        if self.is_sharded:
            total = loss.clone()
            torch.distributed.all_reduce(total)
        else:
            total = self._all_summed(loss)
        self.seconds += time.perf_counter() - start
        return total

    def _all_summed(self, loss: Tensor) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), loss.reshape(1).to(grads[0].dtype)])
        if self.dtype is not None:
            flat = flat.to(self.dtype)
        torch.distributed.all_reduce(flat)
        flat = flat.to(grads[0].dtype)
        *parts, total = torch.split(flat, [grad.numel() for grad in grads] + [1])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        return total[0].clone()


def is_distributed() -> bool:
    """Tell whether this process is one of several."""
    is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_initialized and torch.distributed.get_world_size() > 1
