"""Subword tokenizers (Hugging Face's `tokenizers`): trained on the training rows, or one's own tokenizer.json.

A trained one folds compatibility forms (NFKC), takes runs of spaces and control characters for one space, and starts
every text with <s> (where texts are written as well as read, ends it with </s>), so that none is empty. No character
is unknown: a rare one falls apart into its bytes.
BPE: Sennrich et al., https://arxiv.org/abs/1508.07909. Unigram: Kudo, https://arxiv.org/abs/1804.10959.
"""

import json
import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from datamodules.columns import Column

# Else a process that forks after tokenizing warns on the screen. Ours tokenizes in the parent alone.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

TRAINED = ("bpe", "unigram")
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<s>", "</s>"
ROLES = {  # names by which tokenizers of others call their special tokens
    "pad_id": (PAD, "[PAD]", "<|padding|>", "<|pad|>"),
    "unk_id": (UNKNOWN, "[UNK]", "<|unk|>"),
    "cls_id": (START, "[CLS]", "<cls>", "<bos>", "<|startoftext|>"),
    "eos_id": (END, "[SEP]", "<eos>", "<|endoftext|>"),
}
LONGEST_PIECE = 16  # characters
CHARACTERS_PER_TOKEN = 64  # no more of a text are read than so many for each token that is kept
CHUNK_ROWS = 8_192  # bounds the Python objects that encoding makes
DIGITS = 3  # of a Unigram score: training sums in no fixed order


def train(texts: Iterable[str], *, kind: str, vocab_size: int, lowercase: bool, is_written: bool = False) -> Tokenizer:
    """A new tokenizer; the same for the same texts in the same order.

    Args:
        texts: to learn pieces from.
        kind: "bpe" or "unigram".
        vocab_size: at most so many ids.
        lowercase: whether it ignores case.
        is_written: whether texts end with </s>, as a model must that writes them, instead of starting with <s>.
    """
    special = [PAD, UNKNOWN, START, *([END] if is_written else [])]
    tokenizer = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    spaces = normalizers.Replace(Regex(r"[\p{Cc}\s]+"), " ")
    steps = [normalizers.NFKC(), spaces, normalizers.Strip(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    options: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
    if kind == "bpe":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        # The space that is put ahead of a text is none of it; Metaspace below takes its own away.
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        options |= {"initial_alphabet": alphabet, "max_token_length": LONGEST_PIECE, "min_frequency": 2}
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        options |= {"unk_token": UNKNOWN, "max_piece_length": LONGEST_PIECE}
        options["vocab_size"] = max(vocab_size - 256, len(special) + 1)
        tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(**options))
        tokenizer.model = _with_bytes(json.loads(tokenizer.to_str())["model"]["vocab"], special)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    mark, template = (END, f"$A {END}") if is_written else (START, f"{START} $A")
    marks = [(mark, tokenizer.token_to_id(mark))]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return tokenizer


def _with_bytes(vocab: list[tuple[str, float]], special: list[str]) -> models.Unigram:
    """The same pieces in an order and with scores that do not depend on threads, and the 256 bytes after them."""
    pieces = [(piece, round(score, DIGITS)) for piece, score in vocab if piece not in special]
    pieces.sort(key=lambda pair: (-pair[1], pair[0]))
    least = min((score for _, score in pieces), default=0.0)
    unused = [(f"<0x{byte:02X}>", least - 10) for byte in range(256)]
    return models.Unigram([*((name, 0.0) for name in special), *pieces, *unused], unk_id=1, byte_fallback=True)


def load(path: str) -> Tokenizer:
    """One's own tokenizer.json; [PAD] is added if it has no padding. Raises ValueError if it is none."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        is_there = Path(path).expanduser().is_file()
        reason = str(error).splitlines()[0] if is_there else "there is no such file"
        raise ValueError(
            f"data.tokenizer must be {', '.join(TRAINED)} or the path of a tokenizer.json; {path!r} is none ({reason})"
        ) from error
    tokenizer.no_truncation()
    if (padding := tokenizer.padding) is None and _id_of(tokenizer, "pad_id") is None:
        tokenizer.add_special_tokens(["[PAD]"])
    elif padding is not None and _id_of(tokenizer, "pad_id") is None:
        tokenizer.add_special_tokens([padding["pad_token"]])
    tokenizer.no_padding()
    return tokenizer


def ending(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, with texts that end with its end mark; </s> is added if it has none."""
    if _id_of(tokenizer, "eos_id") is None:
        tokenizer.add_special_tokens([END])
    end = describe(tokenizer)["eos_id"]
    if tokenizer.encode("").ids[-1:] != [end]:
        mark = tokenizer.id_to_token(end)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {mark}", special_tokens=[(mark, end)])
    return tokenizer


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the schema keeps: the whole tokenizer as JSON, its size, and the ids of the special tokens it has."""
    ids = {role: _id_of(tokenizer, role) for role in ROLES}
    found = {role: number for role, number in ids.items() if number is not None or role == "unk_id"}
    return {"json": tokenizer.to_str(), "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True), **found}


def _id_of(tokenizer: Tokenizer, role: str) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in ROLES[role])
    return next((number for number in ids if number is not None), None)


def tokenizer_of(schema: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a schema holds."""
    return Tokenizer.from_str(schema["tokenizer"]["json"])


def cut_notes(what: str, num_cut: Mapping[str, int], max_length: int) -> list[str]:
    """A line that tells how many texts `encode` has cut, by where they are; none where it was none."""
    found = [f"{count:,} of {where}" for where, count in num_cut.items() if count]
    return [f"{what} longer than {max_length:,} tokens lose their end: {', '.join(found)}"] if found else []


def encode(tokenizer: Tokenizer, texts: Column, max_length: int, begin: int | None = None) -> tuple[pa.Array, int]:
    """Token ids, lists of int32, at most `max_length` of each text, and how many texts were longer; in parallel.

    With `begin`, every text starts with this id, once. A text that gives no token (one that is missing, where the
    tokenizer marks no start) gives one: unknown. Raises ValueError where a tokenizer of one's own knows no unknown
    words, and meets one.
    """
    known = {role: _id_of(tokenizer, role) for role in ROLES}
    first = [] if begin is None or tokenizer.encode("").ids[:1] == [begin] else [begin]
    tokenizer.enable_truncation(max_length - len(first))
    special = [number for role in ("unk_id", "cls_id", "eos_id") if (number := known[role]) is not None]
    instead = special[0] if special else int(known["pad_id"] == 0)
    parts, num_cut = [pa.array([], pa.large_list(pa.int32()))], 0
    most = CHARACTERS_PER_TOKEN * max_length
    for start in range(0, len(texts), CHUNK_ROWS):
        column = pc.fill_null(texts.slice(start, CHUNK_ROWS), "")
        is_long = pc.greater(pc.utf8_length(column), most).to_pylist()
        rows = pc.utf8_slice_codeunits(column, 0, most).to_pylist()
        try:
            encodings = tokenizer.encode_batch_fast(rows)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"data.tokenizer cannot take these texts: {error}") from error
        num_cut += sum(long or bool(own.overflowing) for long, own in zip(is_long, encodings, strict=True))
        ids = [first + encoding.ids or [instead] for encoding in encodings]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
        values = np.fromiter(chain.from_iterable(ids), np.int32, count=int(offsets[-1]))
        parts.append(pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values)))
    return pa.concat_arrays(parts), num_cut
