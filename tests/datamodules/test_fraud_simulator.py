import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from datamodules.fraud import simulator
from datamodules.fraud.simulator import Simulation, cache_path, simulate, simulate_cached

SMALL = Simulation(
    num_customers=200,
    num_terminals=400,
    num_days=40,
    start_date="2025-01-01",
    radius=8.0,
    terminals_compromised_per_day=1,
    cards_stolen_per_day=1,
    seed=0,
)


def columns_of(simulation, **options):
    table = simulate(simulation, **options)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    columns["day"] = (columns["time"] - np.datetime64(simulation.start_date)).astype("timedelta64[D]").astype(int)
    columns["time"] = columns["time"].astype("datetime64[s]")
    return columns


def test_seed_decides_everything():
    assert simulate(SMALL).equals(simulate(SMALL))
    assert not simulate(SMALL).equals(simulate(replace(SMALL, seed=1)))


def test_table_is_in_order_of_time_and_does_not_give_the_label_away():
    table = simulate(SMALL)
    assert table.column_names == ["transaction_id", "time", "customer_id", "terminal_id", "amount", "is_fraud"]
    assert str(table.schema.field("time").type) == "timestamp[ms]"
    columns = columns_of(SMALL)
    assert np.all(np.diff(columns["time"]).astype(int) >= 0)
    assert set(columns["day"].tolist()) == set(range(SMALL.num_days))
    assert "scenario" in simulate(SMALL, with_scenario=True).column_names


def test_profiles_follow_the_published_method():
    columns = columns_of(replace(SMALL, num_customers=1000, terminals_compromised_per_day=0, cards_stolen_per_day=0))
    per_day = np.bincount(columns["customer_id"], minlength=1000) / SMALL.num_days
    assert per_day.mean() == pytest.approx(2.0, rel=0.1)  # uniform on 0 to 4, less what would fall on another day
    assert per_day.max() < 5.5
    amount = columns["amount"]
    assert amount.min() >= 0
    np.testing.assert_array_equal(amount, amount.round(2))
    means = np.bincount(columns["customer_id"], amount) / np.maximum(np.bincount(columns["customer_id"]), 1)
    assert np.median(means[per_day > 1]) == pytest.approx(54, rel=0.15)
    second = (columns["time"] - columns["time"].astype("datetime64[D]")).astype(int)
    assert second.mean() == pytest.approx(43_200, rel=0.02)
    assert second.std() == pytest.approx(19_000, rel=0.05)


def test_customers_buy_at_terminals_nearby():
    columns = columns_of(SMALL)
    pairs = np.unique(np.stack([columns["customer_id"], columns["terminal_id"]]), axis=1)
    expected = SMALL.num_terminals * np.pi * SMALL.radius**2 / simulator.PLANE**2
    assert np.bincount(pairs[0]).max() < 3 * expected
    assert columns_of(replace(SMALL, radius=1e-6))["day"].size == 0  # nobody has a terminal


def test_large_amounts_are_frauds():
    columns = columns_of(replace(SMALL, terminals_compromised_per_day=0, cards_stolen_per_day=0))
    np.testing.assert_array_equal(columns["is_fraud"], columns["amount"] > 220)


def test_all_transactions_of_a_compromised_terminal_are_frauds_for_28_days():
    columns = columns_of(replace(SMALL, cards_stolen_per_day=0), with_scenario=True)
    place = columns["terminal_id"] * SMALL.num_days + columns["day"]
    compromised = np.unique(place[columns["scenario"] == 2])
    assert np.all(columns["is_fraud"][np.isin(place, compromised)] == 1)
    # One terminal a day, each for 28 days: 28 at once in the end, at most.
    late = columns["day"] >= 28
    terminals = np.unique(columns["terminal_id"][late & (columns["scenario"] == 2)])
    assert 20 < len(terminals) <= SMALL.num_days
    shares = [np.mean(columns["scenario"][columns["day"] == day] == 2) for day in (0, 35)]
    assert shares[1] == pytest.approx(28 / SMALL.num_terminals, rel=0.4)
    assert shares[0] < 0.01


def test_a_third_of_a_stolen_cards_transactions_is_five_times_as_large_and_fraud():
    without = columns_of(replace(SMALL, cards_stolen_per_day=0, terminals_compromised_per_day=0))
    columns = columns_of(replace(SMALL, terminals_compromised_per_day=0), with_scenario=True)
    stolen = columns["scenario"] == 3
    np.testing.assert_allclose(columns["amount"][stolen], without["amount"][stolen] * 5, atol=0.01)
    np.testing.assert_array_equal(columns["amount"][~stolen], without["amount"][~stolen])
    assert np.all(columns["is_fraud"][stolen] == 1)
    share = np.mean(stolen[columns["day"] >= 14])
    assert share == pytest.approx(14 / SMALL.num_customers / 3, rel=0.4)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="cards_stolen_per_day must be between 0 and 200, got 201"):
        replace(SMALL, cards_stolen_per_day=201)


def test_default_data_are_large_enough_and_rarely_fraud():
    config = OmegaConf.load(Path(__file__).parents[2] / "configs/data/fraud_simulated.yaml")
    names = Simulation.__dataclass_fields__.keys() - {"seed"}
    table = simulate(Simulation(**{name: config[name] for name in names}, seed=config.simulation_seed))
    assert len(table) == 243_947  # as the config's first line says
    assert 0.007 < np.mean(table["is_fraud"].to_numpy()) < 0.013


def test_cache_is_used_and_kept_apart_by_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = simulate_cached(SMALL)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cache_path(SMALL).name]
    monkeypatch.setattr(simulator, "simulate", None)  # a second simulation would fail
    assert simulate_cached(SMALL).equals(first)
    assert cache_path(SMALL) != cache_path(replace(SMALL, radius=5.0))
    monkeypatch.setattr(simulator, "VERSION", 0)
    assert cache_path(SMALL).name not in os.listdir(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_damaged_cache_file_is_made_again(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path))
    first, path = simulate_cached(SMALL), cache_path(SMALL)
    body = bytearray(path.read_bytes())
    if damage == "flipped":
        body[len(body) // 3] ^= 0xFF
    else:
        del body[len(body) // 2 if damage == "torn" else 0 :]
    path.write_bytes(body)
    assert simulate_cached(SMALL).equals(first)
    assert "damaged cache file" in caplog.text
    caplog.clear()
    assert simulate_cached(SMALL).equals(first)
    assert not caplog.text


def test_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "file" / "folder"))
    assert len(simulate_cached(SMALL)) > 0
    assert "set FULLCYCLE_CACHE" in caplog.text
