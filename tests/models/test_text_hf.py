"""Pretrained encoders: how they train, resume, export and load, on a tiny BERT of random weights in a local folder."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from models.dropout import RowDropout
from models.pretrained import tokenizer_file
from models.text import pretrained
from models.text.hf import TextPretrained
from train.run import run

needs_hf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "peft")),
    reason="needs transformers and peft: pip install 'fullcycle[hf]'",
)
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": 1.0,
    "ema_decay": None,
    "label_smoothing": 0.0,
    "calibration": "temperature",
    "compile": False,
}
OPTIONS = {"pooling": "attention", "dropout": 0.1, "layer_decay": 0.5, "lora_rank": 0}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two topics, told apart by one word in ten others."""
    generator = np.random.default_rng(0)
    words = np.array([f"word{index}" for index in range(40)])
    rows = []
    for number in range(240):
        text = [*generator.choice(words, generator.integers(3, 12)), ("cat", "dog")[number % 2]]
        rows.append({"text": " ".join(generator.permutation(text)), "label": ("cats", "dogs")[number % 2]})
    path = tmp_path_factory.mktemp("table") / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bert(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it, with the tokenizer beside the weights."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [json.loads(line)["text"] for line in table.read_text().splitlines()]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=32, **ENCODER)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def configure(table: Path, bert: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes the text experiment with the tiny encoder; takes further overrides."""

    def configure(*overrides: str) -> DictConfig:
        data = ["data=text_table", f"data.path={table}", "data.text=text", "data.label=label", "data.max_length=32"]
        data += [f"data.tokenizer={bert / 'tokenizer.json'}", "data.batch_tokens=256", "data.batches_per_call=2"]
        model = ["model=hf", f"model.encoder={bert}", "model.lr=3e-3", "trainer.max_epochs=2"]
        rest = ["baselines=none", "trainer=cpu", f"output_dir={tmp_path / 'runs'}"]
        with initialize_config_module("configs", version_base="1.3"):
            return compose("train", ["experiment=text", *data, *model, *rest, *overrides])

    return configure


@pytest.fixture(scope="module")
def schema(bert: Path) -> dict:
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    described = {"json": tokenizer.to_str(), "vocab_size": tokenizer.get_vocab_size(), "pad_id": 0, "unk_id": 1}
    kept = {"tokenizer": described, "max_length": 32, "target": {"name": "label"}, "class_weights": None}
    return {"classes": ["a", "b"], "counts": [3, 1], "multi_label": False, **kept}


@pytest.fixture
def tokens() -> torch.Tensor:
    drawn = torch.randint(5, 60, (6, 9), generator=torch.Generator().manual_seed(0))
    drawn[1, 4:], drawn[2, :] = 0, 0
    return drawn


def made(schema: dict, bert: Path, **changed: object) -> TextPretrained:
    torch.manual_seed(0)
    return TextPretrained(schema, encoder=str(bert), **{**OPTIONS, **TRAINING, **changed})


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers, .* pip install 'fullcycle\[hf\]'"):
        pretrained.load("bert-base-uncased")


@needs_hf
def test_logits_are_those_of_the_encoder_under_the_head(schema: dict, bert: Path, tokens: torch.Tensor) -> None:
    from transformers import BertModel

    module = made(schema, bert, pooling="first").eval()
    with torch.no_grad():
        module.network.head.weight.normal_()
        theirs = BertModel.from_pretrained(bert).eval()(input_ids=tokens[:2], attention_mask=(tokens[:2] != 0).long())
        expected = module.network.head(theirs.last_hidden_state[:, 0])
        torch.testing.assert_close(module.network(tokens)[:2], expected, atol=1e-5, rtol=1e-5)
        assert module(tokens).isfinite().all()
        assert module(tokens[:0]).shape == (0, 2)


@needs_hf
@pytest.mark.parametrize("pooling", ["attention", "first"])
def test_padding_changes_nothing(schema: dict, bert: Path, tokens: torch.Tensor, pooling: str) -> None:
    module = made(schema, bert, pooling=pooling).eval()
    with torch.no_grad():
        module.network.head.weight.normal_()
        padded = nn.functional.pad(tokens, (0, 7))
        torch.testing.assert_close(module(padded)[:2], module(tokens)[:2], atol=1e-5, rtol=1e-5)


@needs_hf
def test_dropout_falls_by_row_and_is_on_in_training(schema: dict, bert: Path, tokens: torch.Tensor) -> None:
    module = made(schema, bert, dropout=0.5)
    active = [one for one in module.network.encoder.modules() if isinstance(one, nn.Dropout) and one.p > 0]
    assert active == []
    by_row = [one for one in module.network.encoder.modules() if isinstance(one, RowDropout)]
    assert len(by_row) == 1 + 2 * ENCODER["num_hidden_layers"]
    assert all(one.training and one.probability == 0.5 for one in by_row)


@needs_hf
def test_the_rate_falls_from_layer_to_layer(schema: dict, bert: Path) -> None:
    module = made(schema, bert, layer_decay=0.5)
    groups = module.configure_optimizers().param_groups
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    found = {name: scale[id(weight)] for name, weight in module.network.named_parameters()}
    assert found["head.weight"] == found["pooling.weigh.bias"] == groups[0]["lr_scale"] == 1.0
    assert found["encoder.encoder.layer.1.output.dense.weight"] == 0.5
    assert found["encoder.encoder.layer.0.attention.self.query.bias"] == 0.25
    assert found["encoder.embeddings.word_embeddings.weight"] == 0.125
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert {decay[id(w)] for n, w in module.network.named_parameters() if n.endswith("bias")} == {0.0}
    assert decay[id(module.network.head.weight)] == TRAINING["weight_decay"]


@needs_hf
def test_a_rank_that_no_matrix_has_is_told(schema: dict, bert: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_rank must be at most \d+, the full rank of .*; got 1000"):
        made(schema, bert, lora_rank=1000)


@needs_hf
def test_low_rank_updates_are_all_of_the_encoder_that_trains_and_merge(
    schema: dict, bert: Path, tokens: torch.Tensor
) -> None:
    module = made(schema, bert, lora_rank=2, ema_decay=0.9)
    trained = {name for name, weight in module.network.named_parameters() if weight.requires_grad}
    assert {name for name in trained if name.startswith("encoder.")} == {name for name in trained if "lora_" in name}
    assert "encoder.encoder.layer.0.attention.self.query.lora_A.default.weight" in trained
    module.eval()
    with torch.no_grad():
        for weight in module.average.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        (graph,) = module.export_graphs()
        assert not [name for name in graph.module.state_dict() if "lora_" in name]
        torch.testing.assert_close(graph.module(tokens)[0], module(tokens), atol=1e-5, rtol=1e-5)
        assert [name for name in module.state_dict() if "lora_" in name]


@needs_hf
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_length": 33}, "data.max_length must be at most 32, the encoder's longest text; got 33"),
        ({"tokenizer": {"vocab_size": 500}}, "500 pieces, of which the encoder knows"),
        ({"tokenizer": {"json": None}}, r"data.tokenizer must be that of the encoder .*tokenizer.json"),
    ],
)
def test_texts_that_do_not_fit_the_encoder_are_refused(schema: dict, bert: Path, changes: dict, told: str) -> None:
    other = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str()
    tokenizer = {**schema["tokenizer"], **changes.get("tokenizer", {})}
    tokenizer["json"] = tokenizer["json"] or other
    with pytest.raises(ValueError, match=told):
        made({**schema, **changes, "tokenizer": tokenizer}, bert)


@needs_hf
def test_an_encoder_without_a_tokenizer_beside_it_is_taken_at_its_word(
    schema: dict, bert: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, tmp_path / name)
    assert tokenizer_file(str(bert)) == bert / "tokenizer.json"
    assert tokenizer_file(str(tmp_path)) is None
    assert made(schema, tmp_path).network.vocab_size == schema["tokenizer"]["vocab_size"]


@needs_hf
def test_a_rank_without_rows_computes_gradients_of_zero(schema: dict, bert: Path, tokens: torch.Tensor) -> None:
    network = made(schema, bert).network.train()
    logits = network.score(tokens[:0])
    assert logits.shape == (0, 2)
    logits.sum().backward()
    assert {name for name, weight in network.named_parameters() if weight.grad is None} == set()
    assert all(not weight.grad.any() for weight in network.parameters())
    assert all(module.training for module in network.modules())


@needs_hf
def test_a_name_that_is_no_encoder_is_told(schema: dict, tmp_path: Path) -> None:
    told = "encoder must be an encoder's name .*; '.*nothing' is none .there is no such folder"
    with pytest.raises(ValueError, match=told):
        made(schema, tmp_path / "nothing")


@needs_hf
def test_damaged_weights_and_those_of_another_config_are_told(
    schema: dict, bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def changed(name: str, **options: int) -> Path:
        folder = Path(shutil.copytree(bert, tmp_path / name))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | options))
        return folder

    made(schema, bert)
    assert not caplog.messages
    weights = changed("torn") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5_000])
    with pytest.raises(ValueError, match="encoder must be .*torn' is none"):
        made(schema, weights.parent)
    with pytest.raises(ValueError, match="wide' is none .its weights do not fit its config.json"):
        made(schema, changed("wide", hidden_size=32))
    made(schema, changed("deep", num_hidden_layers=3))
    assert any("lacks 16 of " in told and "encoder.layer.2" in told for told in caplog.messages)


@needs_hf
def test_an_encoder_that_drops_by_itself_trains(schema: dict, tmp_path: Path, tokens: torch.Tensor) -> None:
    from transformers import GPT2Config, GPT2Model

    sizes = {
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
        "vocab_size": schema["tokenizer"]["vocab_size"],
    }
    GPT2Model(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path)
    assert made(schema, tmp_path).network.train().score(tokens).isfinite().all()


@needs_hf
@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 4])
def test_it_learns_resumes_exports_and_loads_without_the_folder(
    configure: Callable[..., DictConfig], bert: Path, lora: int, tmp_path: Path
) -> None:
    from train.export.contest import in_torch
    from train.export.export import export
    from train.export.session import open_session
    from train.export.source import open_source

    longer = [f"model.lora_rank={lora}", "trainer.max_epochs=8", f"model.lr={'2e-2' if lora else '3e-3'}"]
    constant = ["model.schedule=constant", "model.warmup_share=0"]
    whole = run(configure("run_id=whole", *longer, *constant))
    assert whole.metrics["test/accuracy"] > 0.9
    run(configure("run_id=cut", *longer, *constant, "trainer.max_epochs=3"))
    cut = run(configure("run_id=cut", *longer, *constant))
    assert cut.metrics == whole.metrics
    lost = [bert / "config.json", bert / "model.safetensors"]
    aside = [shutil.move(path, tmp_path / path.name) for path in lost]
    try:
        with initialize_config_module("configs", version_base="1.3"):
            asked = [f"run={whole.folder}", "quantize=[int8_weights]", "sign=false", "gate.rounds=3"]
            bundle = export(compose("export", asked))
        source = open_source(str(whole.folder), {})
    finally:
        for path, kept in zip(lost, aside, strict=True):
            shutil.move(kept, path)
    raw = source.raw(20)
    found = open_session(bundle / "model.onnx").run(None, raw)
    expected = in_torch(source.datamodule, source.model.export_graphs()[0], raw)
    # What ships may be int8, which moves a row or two that lie between the classes.
    assert np.abs(found[0] - np.asarray(expected[0])).mean() < 0.02
    assert found[0].std() > 0.1
