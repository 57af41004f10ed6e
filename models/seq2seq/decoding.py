"""Batched beam search; with one beam it is greedy. The same for torch and for ONNX Runtime: both are a `Stepper`.

Shapes: B rows, K beams, V vocabulary, M longest output in tokens.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypedDict

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional

from models.seq2seq.network import Memory, Seq2SeqNetwork

NEVER = float("-inf")


class Search(TypedDict):
    """How outputs are searched.

    Attributes:
        beams: hypotheses that are followed at once; 1 is greedy.
        length_penalty: a hypothesis' log-probability is divided by its length to this power (Wu et al., 2016, arXiv
            1609.08144, in the form of most toolkits): 0 prefers short ones.
        no_repeat_ngram: no so many tokens in a row occur twice; 0 to allow them.
        min_length: tokens of an output, the end not counted, at least.
        max_length: at most.
    """

    beams: Annotated[int, Gt(0), Le(1000)]
    length_penalty: Annotated[float, Ge(0), Le(10)]
    no_repeat_ngram: Annotated[int, Ge(0)]
    min_length: Annotated[int, Ge(0)]
    max_length: Annotated[int, Gt(0)]


class Stepper(Protocol):
    """A decoder that goes on by one token; `state` is its own."""

    def start(self, source: Tensor) -> Any:
        """Read token ids [B, S]; return the state of B rows."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take the last tokens [R, 1], R a multiple of the state's rows; return log-probabilities [R, V], new state."""

    def reorder(self, state: Any, rows: Tensor, sentences: Tensor | None) -> Any:
        """Keep the decoder's rows [R'] and, unless None, the sentences [B'] of a state."""


@torch.inference_mode()
def search(stepper: Stepper, source: Tensor, how: Search, *, start_id: int, end_id: int, pad_id: int) -> Tensor:
    """Return the best output of each source: token ids [B, L] without the start, padded after the end token.

    A row that is finished leaves the batch when half of the batch is. A row is finished when K hypotheses have ended
    and no running one is better than the worst of them.

    Args:
        stepper: the decoder.
        source: token ids [B, S].
        how: see `Search`.
        start_id: token that a target starts with.
        end_id: token that it ends with.
        pad_id: token after that.
    """
    num_rows = len(source)
    best = source.new_full((num_rows, how["max_length"] + 1), pad_id)
    if not num_rows:
        return best[:, :0]
    beams = Beams(num_rows, how, source.device, end_id=end_id, pad_id=pad_id)
    state = stepper.start(source)
    tokens = source.new_full((num_rows, 1), start_id)
    where = torch.arange(num_rows, device=source.device)  # of the rows in the batch
    for length in range(1, how["max_length"] + 2):
        log_probabilities, state = stepper.step(tokens, state)
        origin = beams.extend(log_probabilities, length)
        done = beams.done(length)
        if length == how["max_length"] + 1 or bool(done.all()):
            best[where] = beams.best()
            break
        kept = None
        if int(done.sum()) * 2 >= len(done):
            best[where[done]] = beams.best()[done]
            kept = (~done).nonzero().squeeze(1)
            where, origin = where[kept], origin[kept]
            beams.keep(kept)
        state = stepper.reorder(state, origin.flatten(), kept)
        tokens = beams.last().view(-1, 1)
    longest = int((best != pad_id).sum(dim=1).max())
    found: Tensor = best[:, :longest]
    return found


def joined(parts: Sequence[Tensor], pad_id: int) -> Tensor:
    """Outputs [B, L] of several searches as one, padded to the longest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=pad_id) for part in parts])


class Beams:
    """The running and the finished hypotheses of B rows.

    Attributes:
        scores: log-probabilities of the running ones, [B, K].
        tokens: theirs, [B, K, M + 1].
        ended_scores: of the finished ones, divided by the length penalty, the best first, [B, K].
        ended: their tokens, [B, K, M + 1].
        finished: which rows are; what they have ended with stays, however long they wait for the batch, [B].
    """

    def __init__(self, num_rows: int, how: Search, device: torch.device, *, end_id: int, pad_id: int) -> None:
        self.how, self.end_id, self.pad_id = how, end_id, pad_id
        shape = (num_rows, how["beams"], how["max_length"] + 1)
        self.scores = torch.zeros(num_rows, 1, device=device)  # all beams are alike before the first token
        self.tokens = torch.full((num_rows, 1, shape[2]), pad_id, device=device)
        self.ended_scores = torch.full(shape[:2], NEVER, device=device)
        self.ended = torch.full(shape, pad_id, device=device)
        self.finished = torch.zeros(num_rows, dtype=torch.bool, device=device)

    def extend(self, log_probabilities: Tensor, length: int) -> Tensor:
        """Go on with the best next tokens, given [B * K, V]; return the decoder's row that each comes from, [B, K].

        length: of the hypotheses with the next token.
        """
        rows, beams = self.scores.shape
        allowed = self._allowed(log_probabilities.view(rows, beams, -1), length)
        num_beams = self.how["beams"]
        each = allowed.topk(min(2 * num_beams, allowed.shape[2]), dim=2)
        scores, tokens = (each.values + self.scores.unsqueeze(2)).flatten(1), each.indices.flatten(1)
        found = scores.topk(min(2 * num_beams, scores.shape[1]), dim=1)
        origin, token = found.indices // each.values.shape[2], tokens.gather(1, found.indices)
        tokens = self.tokens.gather(1, origin.unsqueeze(2).expand(-1, -1, self.tokens.shape[2]))
        tokens[:, :, length - 1] = token
        is_end = token == self.end_id
        self._end(found.values.masked_fill(~is_end, NEVER), tokens, length)
        running = found.values.masked_fill(is_end, NEVER).topk(min(num_beams, found.values.shape[1]), dim=1)
        self.scores = running.values
        self.tokens = tokens.gather(1, running.indices.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        first = torch.arange(rows, device=origin.device).unsqueeze(1) * beams
        return first + origin.gather(1, running.indices)

    def _allowed(self, scores: Tensor, length: int) -> Tensor:
        """The scores [B, K, V], those of tokens that must not come now at minus infinity."""
        scores[:, :, self.pad_id] = NEVER
        if length <= self.how["min_length"]:
            scores[:, :, self.end_id] = NEVER
        if length == self.how["max_length"] + 1:
            end = scores[:, :, self.end_id].clone()
            scores.fill_(NEVER)
            scores[:, :, self.end_id] = end
        size = self.how["no_repeat_ngram"]
        if size and length > size and length <= self.how["max_length"]:
            said = self.tokens[:, :, : length - 1]
            windows = said.unfold(2, size, 1)  # [B, K, windows, size]
            last = said[:, :, length - size :].unsqueeze(2)
            repeats = (windows[..., :-1] == last).all(dim=3)
            banned = torch.zeros_like(scores, dtype=torch.bool)
            # A token may follow several windows: what does not repeat must not undo what does.
            banned = banned.int().scatter_add_(2, windows[..., -1], repeats.int()) > 0
            banned[:, :, self.end_id] = False
            scores.masked_fill_(banned, NEVER)
        return scores

    def _end(self, scores: Tensor, tokens: Tensor, length: int) -> None:
        """Take up hypotheses that have ended, [B, C]: only those among the best K of rows that go on count."""
        beams = self.how["beams"]
        scores = scores[:, :beams] / float(length) ** self.how["length_penalty"]
        scores = scores.masked_fill(self.finished.unsqueeze(1), NEVER)
        together = torch.cat([self.ended_scores, scores], dim=1)
        all_tokens = torch.cat([self.ended, tokens[:, :beams]], dim=1)
        best = together.topk(beams, dim=1)
        self.ended_scores = best.values
        self.ended = all_tokens.gather(1, best.indices.unsqueeze(2).expand(-1, -1, all_tokens.shape[2]))

    def done(self, length: int) -> Tensor:
        """Which rows are finished after this step, [B]."""
        attainable = self.scores.max(dim=1).values / float(length) ** self.how["length_penalty"]
        worst = self.ended_scores[:, -1]
        self.finished = self.finished | ((worst > NEVER) & (worst >= attainable))
        return self.finished

    def keep(self, rows: Tensor) -> None:
        """Leave the other rows out."""
        self.scores, self.tokens = self.scores[rows], self.tokens[rows]
        self.ended_scores, self.ended = self.ended_scores[rows], self.ended[rows]
        self.finished = self.finished[rows]

    def last(self) -> Tensor:
        """The last tokens of the running hypotheses, [B, K]."""
        length = (self.tokens != self.pad_id).sum(dim=2, keepdim=True)
        return self.tokens.gather(2, (length - 1).clamp_min(0)).squeeze(2)

    def best(self) -> Tensor:
        """The best finished hypothesis of each row, [B, M + 1]; where none has ended, the best running one."""
        has_ended = self.ended_scores[:, :1] > NEVER
        return torch.where(has_ended, self.ended[:, 0], self.tokens[:, 0])


class TorchStepper:
    """A network as a `Stepper`; the state is what it has read, and the keys and values up to now."""

    def __init__(self, network: Seq2SeqNetwork) -> None:
        self.network = network

    def start(self, source: Tensor) -> tuple[Memory, None]:
        """Read the source."""
        return self.network.encode(source), None

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Go on by one token."""
        memory, past = state
        hidden, present = self.network.decode(tokens, memory, past)
        return self.network.log_probabilities(hidden, memory)[:, -1], (memory, present)

    def reorder(self, state: Any, rows: Tensor, sentences: Tensor | None) -> Any:
        """Keep rows and sentences."""
        memory, past = state
        past = tuple((key[rows], value[rows]) for key, value in past)
        return self.network.kept(memory, rows, sentences), past
