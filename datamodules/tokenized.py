"""Token ids of all splits in one memory-mapped Arrow file, made once for the same texts and tokenizer."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import tokenizers
from tokenizers import Tokenizer

from datamodules.cache import cache_file, one_at_a_time, write_atomically
from datamodules.columns import Column
from datamodules.sources import fingerprint
from datamodules.texts import Texts
from datamodules.tokenizer import TRAINED, describe, encode, ending, load, train

log = logging.getLogger(__name__)

VERSION = 3  # of what is made here: a new one makes old cache files stale
TRAINING_CHARACTERS = 10_000  # of each text train the tokenizer: a longer word takes the square of its length


@dataclass(frozen=True)
class How:
    """How texts become token ids; see `Options` of the data module.

    Attributes:
        tokenizer: bpe, unigram or a path.
        vocab_size: of a trained one.
        lowercase: of a trained one.
        max_length: tokens of a text.
        target_length: tokens of a target; None where texts are read and none is written.
    """

    tokenizer: str
    vocab_size: int
    lowercase: bool
    max_length: int
    target_length: int | None = None


@dataclass(frozen=True)
class Tokenized:
    """Token ids by split, Arrow arrays of lists; the tokenizer as the schema has it; how many texts were cut.

    The targets of a split are under `target_of(split)`.
    """

    tokens: dict[str, pa.Array]
    tokenizer: dict[str, Any]
    num_cut: dict[str, int]
    prints: dict[str, str]

    def fingerprint_with(self, labels: Mapping[str, Column]) -> str:
        """One hash of the texts and labels of all splits."""
        parts = {name: [own] for name, own in self.prints.items()}
        for name, column in labels.items():
            parts[name].append(fingerprint(pa.table({"label": column})))
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def target_of(split: str) -> str:
    """The name of a split's targets."""
    return f"{split} target"


def tokenized(texts: Mapping[str, Column], how: How, targets: Mapping[str, Column] | None = None) -> Tokenized:
    """Token ids of texts, and of the targets to be written of them, from the cache where they are.

    A damaged file is made again. Processes of one machine wait for the one that makes the file. Without a folder to
    write to, nothing is cached.
    """
    columns = {**texts, **{target_of(name): column for name, column in (targets or {}).items()}}
    prints = {name: fingerprint(pa.table({"text": column})) for name, column in columns.items()}
    own = {} if how.tokenizer in TRAINED else {"file": describe(load(how.tokenizer))}
    determined = {"version": VERSION, "library": tokenizers.__version__, "texts": prints, **own}
    determined |= {name: value for name, value in asdict(how).items() if value is not None}
    path = cache_file("tokens", determined, ".arrow")
    found = _read(path, prints)
    if found is None:
        with one_at_a_time(path):
            found = _read(path, prints) or _make(columns, how, prints, path)
    return found


def _make(texts: Mapping[str, Column], how: How, prints: dict[str, str], path: Path) -> Tokenized:
    tokenizer = _tokenizer(texts, how)
    tokenizer.enable_truncation(how.max_length)  # whoever takes it out of a bundle cuts texts as they were cut here
    described, num_cut, batches = describe(tokenizer), {}, {}
    if how.target_length:
        described.setdefault("cls_id", described["pad_id"])  # where T5 and Marian start, which have no start mark
    for name, column in texts.items():
        if how.target_length and name.endswith(target_of("")):
            given = {"max_length": how.target_length, "begin": described["cls_id"]}
        else:
            given = {"max_length": how.max_length}
        batches[name], num_cut[name] = encode(tokenizer, column, **given)
    about = {"tokenizer": described, "num_cut": num_cut, "splits": list(texts)}
    schema = pa.schema([("tokens", pa.large_list(pa.int32()))], metadata={"about": json.dumps(about)})
    try:
        write_atomically(path, lambda file: _write(file, schema, batches))
    except OSError as error:
        log.warning("the token ids are not cached (%s); set FULLCYCLE_CACHE to a folder", error)
        return Tokenized(batches, described, num_cut, prints)
    return _read(path, prints) or Tokenized(batches, described, num_cut, prints)


def _tokenizer(texts: Mapping[str, Column], how: How) -> Tokenizer:
    """One tokenizer of all that trains, sources and targets alike; or one's own."""
    is_written = how.target_length is not None
    if how.tokenizer not in TRAINED:
        return ending(load(how.tokenizer)) if is_written else load(how.tokenizer)
    own = [texts[name] for name in ("train", target_of("train")) if name in texts]
    given = chain.from_iterable(Texts(pc.utf8_slice_codeunits(column, 0, TRAINING_CHARACTERS)) for column in own)
    options: dict[str, Any] = {"vocab_size": how.vocab_size, "lowercase": how.lowercase, "is_written": is_written}
    return train(given, kind=how.tokenizer, **options)


def _write(file: Any, schema: pa.Schema, batches: Mapping[str, pa.Array]) -> None:
    with pa.ipc.new_file(file, schema) as writer:
        for column in batches.values():
            writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))


def _read(path: Path, prints: dict[str, str]) -> Tokenized | None:
    """What is in a cache file, mapped into memory; None where there is none that is whole."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads(reader.schema.metadata[b"about"])
        tokens = {name: reader.get_batch(place).column(0) for place, name in enumerate(about["splits"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
        return None
    return Tokenized(tokens, about["tokenizer"], about["num_cut"], prints)
