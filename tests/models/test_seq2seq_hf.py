"""Pretrained encoder-decoders: a tiny T5, BART and Marian of random weights in local folders."""

import importlib.util
import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from models.seq2seq import pretrained
from models.seq2seq.decoding import TorchStepper
from models.seq2seq.export import GraphStepper
from models.seq2seq.hf import Seq2SeqPretrained
from train.run import run

needs_hf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "peft")),
    reason="needs transformers and peft: pip install 'fullcycle[hf]'",
)
FAMILIES = ("t5", "bart", "marian")
every_family = pytest.mark.parametrize("family", FAMILIES)
SPECIAL = {  # where each family has its special tokens
    "t5": ["<pad>", "</s>", "<unk>"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>"],
    "marian": ["</s>", "<unk>", "<pad>"],
}
TRAINING: dict[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": 1.0,
    "ema_decay": None,
    "label_smoothing": 0.1,
    "beams": 4,
    "length_penalty": 1.0,
    "no_repeat_ngram": 0,
    "min_length": 0,
    "max_length": 12,
    "compile": False,
}
OPTIONS: dict[str, Any] = {"dropout": 0.1, "layer_decay": 1.0, "lora_rank": 0}


def config_of(family: str, vocab_size: int) -> Any:
    from transformers import BartConfig, MarianConfig, T5Config

    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 6, "d_ff": 32, "num_heads": 2, "num_layers": 2}
        return T5Config(vocab_size=vocab_size, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    both = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in both.items()}
    sizes |= {"decoder_layers": 3, "d_model": 16, "max_position_embeddings": 80, "vocab_size": vocab_size}
    if family == "bart":
        return BartConfig(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, **sizes)
    ids = {"pad_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 0, "forced_eos_token_id": 0}
    return MarianConfig(decoder_vocab_size=vocab_size, **ids, **sizes)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as `save_pretrained` leaves them, by family, with a tokenizer beside the weights."""
    from transformers import AutoModelForSeq2SeqLM

    made = {}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for family, special in SPECIAL.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters, show_progress=False)
        tokenizer.train_from_iterator([], trainer)
        end = ("</s>", tokenizer.token_to_id("</s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config_of(family, tokenizer.get_vocab_size() + 5))
        if family == "bart":
            model.generation_config.forced_bos_token_id = 0
        made[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(made[family])
        tokenizer.save(str(made[family] / "tokenizer.json"))
    return made


def schema_of(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {role: tokenizer.token_to_id(name) for role, name in (("pad_id", "<pad>"), ("unk_id", "<unk>"))}
    start = tokenizer.token_to_id("<s>")
    ids |= {"eos_id": tokenizer.token_to_id("</s>"), "cls_id": ids["pad_id"] if start is None else start}
    described = {"json": tokenizer.to_str(), "vocab_size": tokenizer.get_vocab_size(), **ids}
    return {"tokenizer": described, "max_source_length": 40, "max_target_length": 40}


def made(folder: Path, **changed: Any) -> Seq2SeqPretrained:
    torch.manual_seed(0)
    return Seq2SeqPretrained(schema_of(folder), pretrained=str(folder), **{**OPTIONS, **TRAINING, **changed})


def opinionated(folder: Path, **changed: Any) -> Seq2SeqPretrained:
    """One with large weights, so that it writes several tokens."""
    module = made(folder, **changed).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in module.network.named_parameters():
            if weight.ndim > 1 and "position" not in name:
                weight.normal_(std=2.0 if "shared" in name else 0.25, generator=generator)
        head = module.network.model.lm_head  # one of its own: else a token is what follows it
        head.weight = nn.Parameter(torch.empty_like(head.weight).normal_(std=1.0, generator=generator))
    return module


def sources(module: Seq2SeqPretrained, rows: int = 8, length: int = 9) -> Tensor:
    known = module.schema["tokenizer"]
    ids = torch.randint(5, known["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))
    for row in range(rows):
        ids[row, length - 1 - row % 5] = known["eos_id"]
        ids[row, length - row % 5 :] = known["pad_id"]
    return ids


def targets(module: Seq2SeqPretrained, source: Tensor) -> Tensor:
    return torch.cat([source.new_full((len(source), 1), module.schema["tokenizer"]["cls_id"]), source], dim=1)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers, .* pip install 'fullcycle\[hf\]'"):
        pretrained.load("t5-small", dropout=0.1)


@needs_hf
@every_family
def test_greedy_search_writes_what_generate_writes(folders: dict[str, Path], family: str) -> None:
    module = opinionated(folders[family])
    source, known = sources(module), module.schema["tokenizer"]
    # What no search here writes: padding, and what the model knows beyond the tokenizer.
    never = [known["pad_id"], *range(known["vocab_size"], known["vocab_size"] + 5)]
    theirs = module.network.model.generate(
        input_ids=source,
        attention_mask=(source != known["pad_id"]).long(),
        num_beams=1,
        do_sample=False,
        max_new_tokens=12 + len(module.network.prefix),
        suppress_tokens=never,
        forced_eos_token_id=known["eos_id"],
    )[:, len(module.network.prefix) :]
    assert module.network.prefix == {"t5": [0], "bart": [2, 0], "marian": [2]}[family]
    ours = module.written(source, beams=1)
    assert ours.tolist() == theirs.tolist()
    assert len({tuple(row) for row in ours.tolist()}) > 4
    assert len(ours.unique()) > 10


@needs_hf
@every_family
def test_steps_with_a_cache_say_what_one_pass_says(folders: dict[str, Path], family: str) -> None:
    module = opinionated(folders[family])
    network, source = module.network, sources(module)
    target = targets(module, source)
    memory = network.encode(source)
    whole = network.log_probabilities(network.decode(target, memory)[0], memory)
    stepper = TorchStepper(network)
    state: Any = stepper.start(source)
    for place in range(target.shape[1]):
        found, state = stepper.step(target[:, place : place + 1], state)
        torch.testing.assert_close(found, whole[:, place], atol=1e-4, rtol=1e-4)
    said = whole[:, :-1].gather(2, target[:, 1:, None]).squeeze(2) * (source != module.schema["tokenizer"]["pad_id"])
    torch.testing.assert_close(network.score(source, target)[1], -said.sum(dim=1), atol=1e-3, rtol=1e-4)


class Forgetful:
    """A stepper without a cache: each step reads the source and all tokens again."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def start(self, source: Tensor) -> Any:
        return source, source[:, :0]

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        source, said = state
        said = torch.cat([said, tokens], dim=1)
        memory = self.network.encode(source)
        return self.network.log_probabilities(self.network.decode(said, memory)[0], memory)[:, -1], (source, said)

    def reorder(self, state: Any, rows: Tensor, sentences: Tensor | None) -> Any:
        return tuple(part[rows] for part in state)


@needs_hf
@every_family
def test_beams_find_the_same_with_a_cache_as_without(folders: dict[str, Path], family: str) -> None:
    module = opinionated(folders[family])
    source = sources(module)
    with_cache, without = module(source), module.written(source, stepper=Forgetful(module.network))
    assert with_cache.tolist() == without.tolist()
    assert with_cache.tolist() != module.written(source, beams=1).tolist()


@needs_hf
@every_family
def test_the_loss_is_that_of_transformers_and_padding_changes_nothing(folders: dict[str, Path], family: str) -> None:
    module = opinionated(folders[family])
    network, source, known = module.network, sources(module), module.schema["tokenizer"]
    target = targets(module, source)
    smoothed, nll = network.score(source, target, smoothing=0.2)
    prefix = torch.tensor([network.prefix] * len(source))
    logits = network.model(
        input_ids=source,
        attention_mask=(source != known["pad_id"]).long(),
        decoder_input_ids=torch.cat([prefix, source[:, :-1]], dim=1),
    ).logits[:, len(network.prefix) - 1 :, : known["vocab_size"]]
    loss = nn.CrossEntropyLoss(ignore_index=known["pad_id"], reduction="none")(logits.transpose(1, 2), source)
    torch.testing.assert_close(nll, loss.sum(dim=1), atol=1e-3, rtol=1e-4)
    loss = nn.CrossEntropyLoss(ignore_index=known["pad_id"], label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(smoothed, loss(logits.transpose(1, 2), source).sum(dim=1), atol=1e-3, rtol=1e-4)
    longer = [nn.functional.pad(tokens, (0, 4), value=known["pad_id"]) for tokens in (source, target)]
    torch.testing.assert_close(network.score(*longer)[1], nll, atol=1e-3, rtol=1e-4)


@needs_hf
@every_family
def test_dropout_falls_alike_on_any_number_of_ranks(folders: dict[str, Path], family: str) -> None:
    module = made(folders[family], dropout=0.3)
    network, source = module.network.train(), sources(module)
    target = targets(module, source)

    def scored(rows: slice, place: tuple[int, int, int] | None) -> Tensor:
        network.dropout.rows = place
        torch.manual_seed(5)
        return network.score(source[rows], target[rows])[1]

    whole = scored(slice(None), None)
    for rank in range(2):
        torch.testing.assert_close(scored(slice(rank, None, 2), (rank, 2, 8)), whole[rank::2])
    assert not torch.allclose(whole, network.eval().score(source, target)[1], rtol=1e-3)


@needs_hf
def test_a_rank_without_rows_computes_gradients_of_zero(folders: dict[str, Path]) -> None:
    module = made(folders["bart"])
    network, source = module.network.train(), sources(module)
    smoothed, nll = network.score(source[:0], targets(module, source)[:0])
    assert smoothed.shape == nll.shape == (0,)
    smoothed.sum().backward()
    assert {name for name, weight in network.named_parameters() if weight.grad is None} == set()
    assert all(not weight.grad.any() for weight in network.parameters())
    assert all(module.training for module in network.modules())


@needs_hf
@every_family
def test_the_rate_falls_from_layer_to_layer_of_each_stack(folders: dict[str, Path], family: str) -> None:
    module = made(folders[family], layer_decay=0.5)
    groups = module.configure_optimizers().param_groups
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    found = {name: scale[id(weight)] for name, weight in module.network.named_parameters() if weight.requires_grad}
    layers = {"t5": "block", "bart": "layers", "marian": "layers"}[family]
    for name, rate in found.items():
        for stack, size in zip(("encoder", "decoder"), map(len, module.network.layers), strict=True):
            for place in range(size):
                if f"{stack}.{layers}.{place}." in name:
                    assert rate == 0.5 ** (size - place), name
    assert next(rate for name, rate in found.items() if "shared" in name) == min(found.values()) == 0.5 ** (size + 1)


@needs_hf
@every_family
def test_low_rank_updates_are_all_that_trains_and_merge(folders: dict[str, Path], family: str) -> None:
    module = made(folders[family], lora_rank=2, ema_decay=0.9).eval()
    trained = {name for name, weight in module.network.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in module.network.named_parameters() if "lora_" in name} != set()
    with torch.no_grad():
        for name, weight in module.average.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    graphs = {graph.name: graph for graph in module.export_graphs()}
    merged = graphs["encoder_model"].module.network
    assert not [name for name in merged.state_dict() if "lora_" in name]
    source = sources(module)
    target = targets(module, source)
    torch.testing.assert_close(merged.score(source, target)[1], module.average.score(source, target)[1])
    assert not torch.allclose(merged.score(source, target)[1], module.network.score(source, target)[1])


@needs_hf
@every_family
def test_texts_that_do_not_fit_the_model_are_refused(folders: dict[str, Path], family: str) -> None:
    folder = folders[family]
    schema = schema_of(folder)
    options = {"pretrained": str(folder), **OPTIONS, **TRAINING}
    more = {**schema, "tokenizer": {**schema["tokenizer"], "vocab_size": 500}}
    with pytest.raises(ValueError, match="data.tokenizer has 500 pieces, of which the model knows"):
        Seq2SeqPretrained(more, **options)
    other = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>")).to_str()
    with pytest.raises(ValueError, match=r"data.tokenizer must be that of the model .*tokenizer.json"):
        Seq2SeqPretrained({**schema, "tokenizer": {**schema["tokenizer"], "json": other}}, **options)
    if family != "t5":  # whose places are relative
        with pytest.raises(ValueError, match=r"data.max_source_length must be at most 80, .*; got 81"):
            Seq2SeqPretrained({**schema, "max_source_length": 81}, **options)
        most = 80 - len(made(folder).network.prefix)
        with pytest.raises(ValueError, match=f"data.max_target_length must be at most {most}, .*; got 80"):
            Seq2SeqPretrained({**schema, "max_target_length": 80}, **options)


@needs_hf
def test_what_cannot_be_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import BertConfig

    with pytest.raises(ValueError, match="pretrained must be the name of .*; '.*nothing' is none"):
        pretrained.load(str(tmp_path / "nothing"), dropout=0.1)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is none .it has no encoder and decoder."):
        pretrained.load(str(tmp_path), dropout=0.1)
    with pytest.raises(ValueError, match="cannot be pruned: leave prune.ratio out"):
        made(folders["t5"]).network.units()


@needs_hf
def test_sources_without_tokens_are_written_for(folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        module = opinionated(folders[family])
        pad = module.schema["tokenizer"]["pad_id"]
        empty = module(torch.zeros(2, 0, dtype=torch.int64))
        assert empty.tolist() == module(torch.full((2, 1), pad)).tolist()
        assert module(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 0)


@needs_hf
@pytest.mark.slow
@every_family
def test_onnx_runtime_writes_the_tokens_that_torch_writes(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    from train.export import graph
    from train.export.session import open_session, outputs

    module = opinionated(folders[family])
    runs = {}
    for offered in module.export_graphs():
        graph.write(offered, tmp_path / f"{offered.name}.onnx")
        runs[offered.name] = partial(outputs, open_session(tmp_path / f"{offered.name}.onnx"))
    assert list(runs) == ["encoder_model", "decoder_model", "decoder_with_past_model"]
    source = sources(module, rows=20, length=12)
    stepper = GraphStepper(runs, module.schema["tokenizer"]["pad_id"], shares_source=False)
    for beams in (1, 4):
        expected = module.written(source, beams=beams, no_repeat_ngram=2)
        assert torch.equal(module.written(source, stepper=stepper, beams=beams, no_repeat_ngram=2), expected)


@needs_hf
@pytest.mark.slow
@every_family
def test_it_learns_resumes_and_loads_without_the_folder(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    from train.export.source import open_source

    folder = tmp_path / family
    shutil.copytree(folders[family], folder)

    def configure(*overrides: str) -> DictConfig:
        data = ["data.num_pairs=200", f"data.tokenizer={folder / 'tokenizer.json'}", "data.batch_tokens=512"]
        model = ["model=hf_seq2seq", f"model.pretrained={folder}", "model.lr=1e-2", "model.beams=2"]
        steps = ["trainer.max_epochs=2", "model.schedule=constant", "model.warmup_share=0"]
        rest = ["baselines=none", "trainer=cpu", f"output_dir={tmp_path / 'runs'}"]
        with initialize_config_module("configs", version_base="1.3"):
            return compose("train", ["experiment=translation", *data, *model, *steps, *rest, *overrides])

    whole = run(configure("run_id=whole"))
    assert whole.metrics["test/loss"] < 0.9 * math.log(schema_of(folder)["tokenizer"]["vocab_size"])  # of chance
    run(configure("run_id=cut", "trainer.max_epochs=1"))
    cut = run(configure("run_id=cut"))
    assert cut.metrics == whole.metrics
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / name).unlink()
    source = open_source(str(whole.folder), {})
    tokens = source.model.written(source.datamodule.encode_raw(source.raw(4))["source"])
    assert tokens.shape[0] == 4
