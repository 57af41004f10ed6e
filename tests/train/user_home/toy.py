"""A user's own targets, for the tests of the command line: no torch in sight."""

import logging
import os
import signal
from typing import Annotated, Literal, NotRequired, TypedDict, Unpack

from annotated_types import Ge, Lt


class Training(TypedDict):
    lr: Annotated[float, Ge(0)]
    schedule: Literal["cosine", "constant"]
    clip: NotRequired[float | None]


class Data:
    def __init__(self, *, path: str | None, sizes: tuple[int, int]) -> None:
        if path == "nowhere":
            raise FileNotFoundError("data.path: no file 'nowhere'")


class Model:
    def __init__(
        self,
        schema: dict[str, object],
        *,
        width: Annotated[int, Ge(1)],
        dropout: Annotated[float, Ge(0), Lt(1)],
        compile: bool = False,
        **training: Unpack[Training],
    ) -> None:
        if width == 13:
            raise ValueError("width: must not be 13, which brings bad luck")


class Trainer:
    def __init__(self, max_epochs: int | None = None, logger: object = None) -> None:
        pass


def anything(**kwargs: object) -> None: ...


NUMBER = 3


def run(cfg):
    """Stands for train.run.run; `data.path` says how it ends."""
    from hydra.utils import instantiate

    from train import errors

    with errors.reporting(errors.DataError):
        instantiate(cfg.data)
    instantiate(cfg.model, schema={})
    path = cfg.data.path
    with errors.reporting_interrupt("Interrupted. Go on with:\n  python -m train run_id=7"):
        if path == "ctrl-c":
            raise KeyboardInterrupt
        if path == "lightning's ctrl-c":
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise SystemExit(1)  # noqa: B904 - as Lightning does it
    if path == "diverge":
        raise errors.DivergedError("training: the loss is nan at step 7")
    if path == "defect":
        raise KeyError("a defect")
    if path == "sigusr1":
        os.kill(os.getpid(), signal.SIGUSR1)
    if path == "nms":
        raise RuntimeError("operator torchvision::nms does not exist")
    logging.getLogger("toy").warning("a warning")
    print(f"ran width={cfg.model.width} HYDRA_FULL_ERROR={os.environ.get('HYDRA_FULL_ERROR')}")
