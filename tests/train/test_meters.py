"""Speed as it is: operations that were done, time that passed, peaks that exist."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from train import meters
from train.meters import Meters, Totals
from train.run import run


def test_operations_of_the_first_call_are_counted_per_row():
    loader = SimpleNamespace(rows_seen=0, seconds_waiting=0.0)
    trainer, module = SimpleNamespace(train_dataloader=loader), SimpleNamespace(device=torch.device("cpu"))
    network = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Linear(20, 1, bias=False))
    meter = Meters()
    meter.begin(trainer, module)
    loader.rows_seen = 32
    meter.before_call()
    network(torch.rand(32, 10)).sum().backward()
    meter.after_call(trainer, module)
    forward, backward = 2 * (200 + 20), 2 * (200 + 2 * 20)  # no gradient of the inputs of the first layer
    assert meter.flops_per_row == forward + backward
    loader.rows_seen += 1_000
    meter.before_call()
    network(torch.rand(32, 10)).sum().backward()
    meter.after_call(trainer, module)
    assert meter.flops_per_row == forward + backward


def test_rates_are_of_the_time_between_readings():
    meter = Meters()
    meter.flops_per_row, meter.peak_flops = 100.0, 1e6
    rates = meter.rates(Totals(rows=4_000, seconds=2.0, waiting=0.5, communicating=0.2))
    assert rates["rows_per_second"] == 2_000
    assert rates["mfu"] == pytest.approx(0.2)
    assert rates["share_waiting_for_data"] == pytest.approx(0.25)
    assert rates["share_communicating"] == pytest.approx(0.1)


def test_the_peak_of_a_processor_is_measured():
    assert 1e8 < meters.peak_flops(torch.device("cpu")) < 1e14


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-40GB", 312), ("Tesla T4", 65)],
)
def test_the_peak_of_a_card_is_its_data_sheets(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert meters.peak_flops(torch.device("cuda")) == tflops * 1e12


def test_a_run_accounts_for_its_speed(configure):
    account = json.loads((run(configure("trainer.max_epochs=1")).folder / "result.json").read_text())
    assert 0 < account["mfu"] < 1
    assert account["share_communicating"] == 0
    assert 0 <= account["share_waiting_for_data"] < 1
    assert account["memory_gb"] > 0.1
