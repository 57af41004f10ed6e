"""How well a run uses its machine: rows/s, MFU, time spent waiting for data and for other ranks, memory."""

import math
import resource
import time
from dataclasses import dataclass

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 TFLOP/s as NVIDIA's data sheets have them; the longest name that fits wins.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "GH200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.0,
}
_MATMUL = 768  # side of the product that measures a device of no known peak


@dataclass
class Totals:
    """Since training began: rows of all ranks, and this rank's seconds and floating point operations."""

    rows: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0
    communicating: float = 0.0

    def plus(self, other: "Totals", *, sign: int = 1) -> "Totals":
        """Return the sum."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Totals(*(own + sign * more for own, more in pairs))

    def since(self, earlier: "Totals") -> "Totals":
        """Return what was added since `earlier`."""
        return self.plus(earlier, sign=-1)


class Meters:
    """Counts while a run trains; reading them is what costs time, and that is done once in many steps.

    The floating point operations of a row are counted in the first training call (torch's FlopCounterMode). MFU is
    that of Chowdhery et al. (2022): those operations per second over the device's peak.
    """

    def __init__(self) -> None:
        self.total, self._mark = Totals(), Totals()
        self.flops_per_row = math.nan  # of this rank's work, per row of all ranks
        self.peak_flops = math.nan
        self._counter: FlopCounterMode | None = None
        self._first_row = 0.0

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch; validation between epochs is not training time."""
        if math.isnan(self.peak_flops):
            self.peak_flops = peak_flops(pl_module.device)
        self._mark = _now(trainer, pl_module)
        self._first_row = self._mark.rows

    def before_call(self) -> None:
        """Count operations in the first call."""
        if math.isnan(self.flops_per_row):
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def after_call(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the count of the first call."""
        if self._counter is not None:
            rows = _now(trainer, pl_module).rows - self._first_row
            self.flops_per_row = self._counter.get_total_flops() / max(1.0, rows)
            self.stop_counting()

    def stop_counting(self) -> None:
        """Leave the first call, also where it failed: the counter hooks into every operation of the process."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._counter = None

    def read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Add what was done since the last reading; return its rates, for the bar and TensorBoard."""
        now = _now(trainer, pl_module)
        part, self._mark = now.since(self._mark), now
        self.total = self.total.plus(part)
        return self.rates(part)

    def rates(self, part: "Totals | None" = None) -> dict[str, float]:
        """Return the rates of `part`, or of the whole training, by name."""
        part = part or self.total
        seconds = max(part.seconds, 1e-9)
        return {
            "rows_per_second": part.rows / seconds,
            "mfu": self.flops_per_row * part.rows / seconds / self.peak_flops,
            "share_waiting_for_data": part.waiting / seconds,
            "share_communicating": part.communicating / seconds,
            "memory_gb": memory_gb(),
        }


def _now(trainer: Trainer, pl_module: LightningModule) -> Totals:
    loader = trainer.train_dataloader
    return Totals(
        rows=getattr(loader, "rows_seen", 0),
        seconds=time.perf_counter(),
        waiting=getattr(loader, "seconds_waiting", 0.0),
        communicating=getattr(pl_module, "seconds_communicating", 0.0),
    )


def memory_gb() -> float:
    """Return the most memory this process has held: the GPU's where it has one, else its own."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if on_gpu:
        return on_gpu / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def peak_flops(device: torch.device) -> float:
    """Return the floating point operations per second of a device's data sheet, or else of a matrix product on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [card for card in PEAK_TFLOPS if all(word in name for word in card.split())]
        if known:
            return PEAK_TFLOPS[max(known, key=len)] * 1e12
    matrix = torch.ones(_MATMUL, _MATMUL, device=device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * _MATMUL**3 / best
