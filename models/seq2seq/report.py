"""What a trained encoder-decoder tells beyond its metrics: outputs beside references, and quality by length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from models import markdown, plots
from models.seq2seq import metrics
from models.seq2seq.metrics import Written

SAMPLES = 10
MOST_CHARACTERS = 600  # of a text that is shown
PARTS = 5  # of the rows, by length


class Row(NamedTuple):
    """One row that was written.

    Attributes:
        number: of the row in its split.
        source: text.
        reference: text that was wanted.
        output: text that was written.
        nll: negative log-likelihood of the reference, in nats.
        tokens: of the reference, with its end.
        size: tokens of the source.
    """

    number: int
    source: str
    reference: str
    output: str
    nll: float
    tokens: int
    size: int


def written_of(rows: Sequence[Row], language: str | None) -> Written:
    """What metrics need of rows, in the target's language."""
    counts, rouge = metrics.statistics([row.output for row in rows], [row.reference for row in rows], language)
    columns = (np.array([getattr(row, name) for row in rows], float) for name in ("nll", "tokens", "size"))
    return Written(counts, rouge, *columns)


def samples(rows: Sequence[Row]) -> str:
    """A Markdown table of some rows, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).astype(int)
    shown = [
        [_cut(text) for text in (rows[place].source, rows[place].reference, rows[place].output)] for place in places
    ]
    return markdown.table(("source", "reference", "output"), shown)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def predicts(schema: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """Return what the model predicts, in words."""
    languages = schema["languages"]
    what = " in ".join(filter(None, ("a text", languages["target"])))
    search = f"beam search with {how['beams']} beams" if how["beams"] > 1 else "greedy search"
    signature = metrics.signature(languages["target"])
    return f"{what} of at most {how['max_length']} tokens, by {search}; BLEU is counted as {signature}"


def inputs(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return what the input of the exported encoder holds."""
    tokenizer = schema["tokenizer"]
    return {
        "input_ids": f"int64 ids of the tokenizer in schema.json ({tokenizer['vocab_size']:,} pieces) and its end "
        f"token {tokenizer['eos_id']}, cut to {schema['max_source_length']} and padded at its end with "
        f"{tokenizer['pad_id']}"
    }


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return what a user should not expect of it."""
    return [
        "It writes fluent texts also where it is wrong: names and numbers are to be checked.",
        f"What is behind the first {schema['max_source_length']} tokens of a source is not read.",
        "Texts unlike those it was trained on are written as if they were like them.",
    ]


def slices(rows: Written) -> dict[str, dict[str, float]]:
    """Return BLEU and ROUGE-L of rows by the length of their source."""
    return {
        name: {
            "rows": float(len(part.size)),
            "bleu": metrics.bleu(part),
            "rouge_l": metrics.metric_of(part, "rouge_l"),
        }
        for name, part in _by_length(rows)
    }


def _by_length(rows: Written) -> Iterator[tuple[str, Written]]:
    for places in np.array_split(np.argsort(rows.size, kind="stable"), PARTS):
        if len(places):
            part = Written(*(getattr(rows, field)[places] for field in Written.__dataclass_fields__))
            yield f"{part.size.min():.0f} to {part.size.max():.0f} tokens", part


def figures(rows: Written) -> dict[str, Figure]:
    """Return the plots of one written set, by file name."""
    parts = dict(_by_length(rows))
    figure, axes = plots.axes_of(f"BLEU {metrics.bleu(rows):.1f}", "tokens of the source", "score")
    names, places = list(parts), np.arange(len(parts))
    axes.bar(places - 0.2, [metrics.bleu(part) for part in parts.values()], 0.38, label="BLEU", color=plots.BLUE)
    rouge = [metrics.metric_of(part, "rouge_l") for part in parts.values()]
    axes.bar(places + 0.2, rouge, 0.38, label="ROUGE-L", color=plots.GREY)
    axes.set_xticks(list(places), [name.removesuffix(" tokens") for name in names])
    axes.legend()
    lengths, own = plots.axes_of("lengths", "words of the reference", "words of the output")
    own.scatter(rows.bleu[:, 9], rows.bleu[:, 8], s=6, alpha=0.3, color=plots.BLUE)
    top = float(rows.bleu[:, 8:].max(initial=1.0))
    own.plot([0, top], [0, top], color=plots.GREY, linestyle=":")
    return {"quality_by_length": figure, "lengths": lengths}
