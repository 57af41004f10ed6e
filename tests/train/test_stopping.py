"""Signals: a mark while a run trains, and none of Lightning's handlers, which talk to other ranks and hang."""

import os
import signal

import pytest
from pytorch_lightning.callbacks import Callback

from train import run as run_module
from train.checkpoint import recent
from train.errors import StoppedError
from train.run import run


@pytest.fixture
def handlers():
    """The handlers before, put back after."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_training_saves_that_step_and_stops(configure, handlers, monkeypatch, signum):
    class Sender(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 42:
                os.kill(os.getpid(), signum)

    make_trainer = run_module.make_trainer

    def with_sender(*arguments):
        trainer, parts = make_trainer(*arguments)
        trainer.callbacks.insert(0, Sender())
        return trainer, parts

    whole = run(configure("run_id=whole"))
    monkeypatch.setattr(run_module, "make_trainer", with_sender)
    with pytest.raises(StoppedError, match=r"Saved step 42 in .*run_id=stopped goes on") as stopped:
        run(configure("run_id=stopped"))
    assert stopped.value.exit_code == 75
    folder = whole.folder.parent / "stopped"
    assert recent(folder / "checkpoints")[0].name == "step=000000042.ckpt"
    assert not (folder / "result.json").exists()
    monkeypatch.undo()
    assert run(configure("run_id=stopped")).metrics == whole.metrics


def test_after_training_sigterm_ends_the_process_and_slurms_warning_is_heard(configure, handlers, monkeypatch):
    test, found = run_module.test, []

    def look(*arguments, **options):
        metrics = test(*arguments, **options)
        found.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1).__name__))
        return metrics

    monkeypatch.setattr(run_module, "test", look)
    run(configure("trainer.max_epochs=1"))
    assert found == [(signal.SIG_DFL, "_requeue_now")]
