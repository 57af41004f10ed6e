"""Several optimizer steps in one `training_step`, indistinguishable from one step each but for their cost."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Literal

import torch
import torch.distributed
from pytorch_lightning import LightningModule
from torch import Tensor, nn

Schedule = Literal["constant", "cosine"]
Batch = Mapping[str, Tensor]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: Schedule) -> float:
    """Return the learning rate of optimizer step `step` (from 0): linear warm-up, then constant or half a cosine."""
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


class Steps:
    """Takes one optimizer step per mini-batch of a call: gradients, clipping, schedule, AdamW, moving average.

    The random state of step n on rank r is seeded by (seed, n, r), so that dropout needs no saved generator and a
    resumed run draws what an uninterrupted one would.

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
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.averages: list[Tensor] = [] if average is None else list(average.parameters())
        self.decay = decay
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.world_size = torch.distributed.get_world_size() if is_distributed else 1
        self.rank = torch.distributed.get_rank() if is_distributed else 0

    def take(self, batches: Iterable[Batch], loss_of: Callable[[Batch], Tensor]) -> Tensor:
        """Take one step per mini-batch, in order, up to the trainer's `max_steps`; return their losses, [steps]."""
        trainer = self.module.trainer
        first = trainer.global_step
        if trainer.max_steps >= 0:
            batches = islice(batches, trainer.max_steps - first)
        losses = []
        for step, batch in enumerate(batches, start=first):
            self._seed(step)
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            self._step(step, num_rows=len(batch["target"]))
        # Lightning counts calls of its own optimizer wrapper, which costs as much as a small model's step.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += len(losses)
            tracker.completed += len(losses)
        return torch.stack(losses)

    def _seed(self, step: int) -> None:
        value = (self.seed * 1_000_003 + step) * 1_009 + self.rank
        if self.parameters[0].is_cuda:
            torch.cuda.manual_seed(value)
        else:
            torch.default_generator.manual_seed(value)

    def _step(self, step: int, num_rows: int) -> None:
        if self.world_size > 1:
            self._reduce(num_rows)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for parameter in self.parameters:  # Optimizer.zero_grad takes 30 microseconds for the same
            parameter.grad = None
        if self.averages:
            with torch.no_grad():
                # Warms up so that the first steps do not linger: the factor of torch's and TensorFlow's averages.
                decay = min(self.decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(self.averages, self.parameters, 1.0 - decay)

    def _reduce(self, num_rows: int) -> None:
        """Average the gradients over the rows of all ranks in one flat all-reduce.

        DDP's reducer expects one backward per forward through the wrapped module; here there are several. The count of
        rows travels along, since ranks differ by a row where the global batch does not divide.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads] + [grads[0].new_ones(1)]).mul_(num_rows)
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat[:-1] / flat[-1], [grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))
