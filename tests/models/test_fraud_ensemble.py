"""An ensemble answers with the weighted mean of what its members answer, and is made again from plain values."""

from copy import deepcopy

import numpy as np
import onnxruntime
import pytest
import torch

from models.fraud.architectures import FraudMLP, FraudTabM
from models.fraud.ensemble import FraudEnsemble
from models.preprocessing import MISSING_TIME
from train.export import graph as graphs

SCHEMA = {
    "columns": [
        {"name": "amount", "kind": "numeric", "missing": 0.1, "median": 30.0, "iqr": 20.0, "bins": [0.0, 10.0, 300.0]},
        {"name": "age", "kind": "numeric", "missing": 0.0, "median": 40.0, "iqr": 10.0, "bins": []},
        {"name": "city", "kind": "categorical", "categories": ["ulm", "bern"], "hash_buckets": 0},
        {"name": "when", "kind": "timestamp"},
    ],
    "target": {"name": "fraud", "positive": "1", "negative": "0", "rate": 0.2},
    "cost": {"false_negative": 10.0, "false_positive": 1.0, "alert_budget": 0.1},
    "weight": None,
}
FINER = deepcopy(SCHEMA)
FINER["columns"][0]["bins"] = [0.0, 5.0, 10.0, 20.0, 300.0]

TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": 0.9,
    "loss": "bce",
    "focal_gamma": 2.0,
    "positive_weight": 1.0,
    "calibration": "platt",
    "compile": False,
}
TABM = {"embedding_size": 8, "width": 8, "num_blocks": 2, "dropout": 0.1, "num_members": 3, "category_size": 2}
MLP = {"width": 16, "num_blocks": 1, "dropout": 0.1, "category_size": 2}


def trained(module):
    """As if trained: the averaged weights are not the trained ones, and the calibration is fitted."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    module.calibration.slope.fill_(float(torch.rand(()) + 0.5))
    module.calibration.offset.fill_(float(torch.randn(())))
    return module.eval()


@pytest.fixture
def members():
    torch.manual_seed(0)
    modules = [
        FraudTabM(SCHEMA, **TABM, **TRAINING),
        FraudMLP(FINER, **MLP, **TRAINING),
        FraudMLP(SCHEMA, **MLP, **TRAINING),
    ]
    return [trained(module) for module in modules]


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    numeric = torch.randn(200, 2, generator=generator) * 50 + 40
    numeric[::7, 0] = torch.nan
    times = torch.randint(0, 2_000_000_000, (200, 1), generator=generator)
    times[::11] = MISSING_TIME
    return numeric, torch.randint(0, 3, (200, 1), generator=generator), times


@torch.no_grad()
def test_its_raw_score_is_the_weighted_mean_of_the_members_calibrated_probabilities(members, rows):
    found = FraudEnsemble.of(members, [2, 1, 1])
    expected = 0.5 * members[0](*rows) + 0.25 * members[1](*rows) + 0.25 * members[2](*rows)
    torch.testing.assert_close(found.raw_probability(*rows), expected, atol=1e-6, rtol=1e-5)
    assert (members[0](*rows) - members[1](*rows)).abs().max() > 0.1  # else any mean would do


@torch.no_grad()
def test_members_keep_their_own_bins(members, rows):
    found = FraudEnsemble.of(members, [1, 1, 1])
    assert [list(member["bins"]) for member in found.hparams["members"]] == [[], ["amount"], []]
    assert found.schema == SCHEMA
    alone = FraudEnsemble.of(members[1:2], [1])
    assert alone.schema == FINER
    torch.testing.assert_close(alone.raw_probability(*rows), members[1](*rows), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_it_is_made_again_from_its_hyperparameters_and_its_state(members, rows):
    found = FraudEnsemble.of(members, [3, 2, 1])
    again = FraudEnsemble(**found.hparams)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again.eval()(*rows), found(*rows))


def test_it_has_the_weights_that_predict_only(members):
    size = sum(parameter.numel() for parameter in FraudEnsemble.of(members, [1, 1, 1]).parameters())
    assert size == sum(parameter.numel() for member in members for parameter in member.scorer.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda schema: schema["columns"][2]["categories"].append("graz"), "columns"),
        (lambda schema: schema["columns"].pop(1), "columns"),
        (lambda schema: schema["cost"].update(false_positive=2.0), "cost"),
    ],
    ids=["category", "column", "cost"],
)
def test_a_member_with_other_inputs_is_refused_by_what_differs(members, change, named):
    other = deepcopy(SCHEMA)
    change(other)
    with pytest.raises(ValueError, match=f"trained with other {named}$"):
        FraudEnsemble.of([members[0], FraudMLP(other, **MLP, **TRAINING)], [1, 1])


def test_a_member_can_be_nothing_but_a_module_of_this_kind(members):
    options = deepcopy(dict(FraudEnsemble.of(members[:1], [1]).hparams))
    options["members"][0]["model"]["_target_"] = "subprocess.run"
    with pytest.raises(ValueError, match=r"subprocess\.run is no FraudModule"):
        FraudEnsemble(**options)


def test_it_is_neither_trained_nor_pruned(members):
    found = FraudEnsemble.of(members, [1, 1, 1])
    with pytest.raises(ValueError, match="not trained"):
        found.configure_optimizers()
    with pytest.raises(ValueError, match=r"prune\.ratio"):
        found.pruned(0.5, how="magnitude", batches=[])


@pytest.mark.slow
def test_it_is_one_graph_that_answers_as_torch(members, rows, tmp_path):
    found = FraudEnsemble.of(members, [2, 1, 1])
    (offered,) = found.export_graphs()
    graphs.write(offered, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = ("numeric", "categorical", "timestamp")
    probability = session.run(None, {name: rows[index].numpy() for index, name in enumerate(names)})[0]
    with torch.no_grad():
        np.testing.assert_allclose(probability, found(*rows).numpy(), atol=1e-5)


def test_the_graph_of_one_with_an_isotonic_member_may_differ_as_much_as_the_members_own(members):
    isotonic = FraudMLP(SCHEMA, **MLP, **{**TRAINING, "calibration": "isotonic"})
    tolerances = [
        FraudEnsemble.of(modules, [1] * len(modules)).export_graphs()[0].tolerance
        for modules in (members, [*members, isotonic])
    ]
    assert tolerances[0] < tolerances[1] == isotonic.export_graphs()[0].tolerance
