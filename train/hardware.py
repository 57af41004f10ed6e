"""What one rank sees of its machine and of the network between the ranks: disk, collectives, GPU, queue, store."""

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from train.errors import UserError
from train.probe import Scene, Sight, Wrong

MOST_ROUND_TRIP_SECONDS = 0.25
LEAST_BYTES_PER_SECOND = 20e6
COPIES = 4  # numbers a parameter costs in a checkpoint: itself, two of Adam's, the average's
ROUNDS = 10
BANDWIDTH_NUMBERS = 8 * 2**20  # of 4 bytes: 32 MB
BANDWIDTH_ROUNDS = 3

NETWORK = (
    "See that the processes talk over the fast network: NCCL_SOCKET_IFNAME on GPUs, GLOO_SOCKET_IFNAME on CPUs, "
    "names the interface; `ip -brief address` lists them."
)
OTHER_GPU = "Take this host out of the job, run `nvidia-smi -q` on it and tell who looks after it."
SAME_GPU = "Ask for hosts of one kind, under SLURM with --constraint or --gres=gpu:KIND:N; the slowest sets the pace."


def look_at_disk(scene: Scene) -> Sight:
    """Whether the checkpoints that are kept, the best and the one being written have room. Rank 0 looks for all."""
    if scene.rank:
        return Sight()
    try:
        num_bytes = sum(p.numel() * p.element_size() for p in scene.model().parameters())
    except UserError:
        return Sight(skipped="not known without the model")
    needed = num_bytes * COPIES * (int(scene.cfg.checkpoint.keep) + 2)
    there = next(path for path in (scene.folder, *scene.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise Wrong(
            f"{there} has {in_words(free)} free and the checkpoints need about {in_words(needed)}",
            "Make room, set output_dir to another disk, or keep fewer with checkpoint.keep.",
        )
    return Sight(f"{in_words(free)} free, about {in_words(needed)} needed")


def look_at_round_trip(scene: Scene) -> Sight:
    """The time of a sum of one number over all ranks, on the network of training."""
    if scene.words is None:
        return Sight(skipped="one process")
    numbers = [torch.full((1,), float(scene.rank), device=scene.device) for _ in range(ROUNDS)]
    median = statistics.median([_seconds_to_sum(number) for number in numbers])
    expected = scene.num_ranks * (scene.num_ranks - 1) / 2
    if any(number.item() != expected for number in numbers):
        raise Wrong(f"sums over all ranks came as {[*map(Tensor.item, numbers)]} and not {expected}", NETWORK)
    if median > MOST_ROUND_TRIP_SECONDS:
        raise Wrong(f"a round trip takes {median:.2f} s; at most {MOST_ROUND_TRIP_SECONDS:g} s", NETWORK)
    return Sight(f"{median * 1e3:.2g} ms")


def look_at_bandwidth(scene: Scene) -> Sight:
    """Bytes a second and rank in a sum of 32 MB: each rank sends and gets 2 (n - 1) / n times as much."""
    if scene.words is None:
        return Sight(skipped="one process")
    numbers = torch.ones(BANDWIDTH_NUMBERS, device=scene.device)
    _seconds_to_sum(numbers)  # the first opens connections
    best = min(_seconds_to_sum(numbers) for _ in range(BANDWIDTH_ROUNDS))
    speed = numbers.nbytes * 2 * (scene.num_ranks - 1) / scene.num_ranks / best
    if speed < LEAST_BYTES_PER_SECOND:
        raise Wrong(f"{in_words(speed)}/s between ranks; at least {in_words(LEAST_BYTES_PER_SECOND)}/s", NETWORK)
    return Sight(f"{in_words(speed)}/s")


def _seconds_to_sum(numbers: Tensor) -> float:
    start = time.perf_counter()
    dist.all_reduce(numbers)
    numbers[0].item()  # a GPU is done only now
    return time.perf_counter() - start


def look_at_gpu(scene: Scene) -> Sight:
    """The GPU's kind, and whether it multiplies right."""
    if scene.device.type != "cuda":
        if scene.cfg.trainer.get("accelerator") == "auto" and Path("/dev/nvidia0").exists():
            raise Wrong(
                "there is a GPU that torch cannot use",
                "See `nvidia-smi` and the CUDA version of torch, or set trainer.accelerator=cpu.",
            )
        return Sight(skipped="trains on the CPU", alike={"the device": "CPU"}, advice=SAME_GPU)
    name, memory = torch.cuda.get_device_name(scene.device), torch.cuda.get_device_properties(scene.device).total_memory
    numbers = torch.arange(512 * 512).reshape(512, 512) % 7  # small integers: exact in every precision of matmul
    product = numbers.float().to(scene.device) @ numbers.float().to(scene.device)
    if not torch.equal(product.cpu().double(), numbers.double() @ numbers.double()):
        raise Wrong(f"{name} ({scene.device}) multiplies matrices wrongly", OTHER_GPU)
    return Sight(f"{name}, {in_words(memory)}", {"the device": name, "its memory": in_words(memory)}, advice=SAME_GPU)


def look_at_requeue(scene: Scene) -> Sight:
    """Under SLURM, whether rank 0 can ask for its job to be queued again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return Sight(skipped="not under SLURM")
    if scene.rank:
        return Sight()
    advice = (
        "Put SLURM's client tools and /etc/slurm on PATH of this host or in the container; else submit again by hand."
    )
    if shutil.which("scontrol") is None:
        raise Wrong("no `scontrol`: a job that is pre-empted or at its time limit cannot go back to the queue", advice)
    done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise Wrong(f"`scontrol show job {job}` failed: {done.stderr.strip()}", advice)
    return Sight("refused by the job: submit with --requeue" if "Requeue=0" in done.stdout else f"job {job} can")


def look_at_mirror(scene: Scene) -> Sight:
    """Whether rank 0 can write where checkpoints are mirrored."""
    address = scene.cfg.checkpoint.get("mirror")
    if not address:
        return Sight(skipped="no checkpoint.mirror")
    if scene.rank:
        return Sight()
    from train.store import probe

    probe(str(address))
    return Sight(str(address))


def in_words(num_bytes: float) -> str:
    """Bytes in words: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
