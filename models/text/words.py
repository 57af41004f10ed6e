"""Words, their n-grams and their characters out of token ids, as operations that an exported graph can hold.

Shapes: B rows, L tokens, N kinds of features: n-grams by length, and stems; M characters of a piece, K = L * (M + 1).
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MODULUS = 2**31 - 1  # a prime; products of two hashes stay within int64
FACTOR = 1_000_003  # of a character's place in its word
STEP = 69_069  # of a word's place in its n-gram
STEMS = (4, 6)  # first characters of a word that make a feature of their own: words of one family share them
CHARACTERS = (3, 5)  # of an n-gram of characters: fewest and most, its word's two ends counted as one each
MOST_CHARACTERS = 16  # of a piece; what is behind them makes no n-grams of characters
MOST_PIECES = 8  # tokens of a word; what is longer is several words
MARKS = ("\u2581", "\u0120")  # a word's beginning, of SentencePiece and of byte-level tokenizers


class Words(nn.Module):
    """Hash buckets of all n-grams of words, of the words' first characters, and of the n-grams of their characters.

    The tokenizer's pieces are put together to words again: a piece with a mark begins one, and so does one with nor
    letter nor digit, and what follows that. Words hash alike whatever their pieces and their case.

    Args:
        schema: of the data, with its tokenizer.
        num_buckets: hash buckets of all of them together.
        longest: words of the longest n-gram.
    """

    begins: Tensor
    is_word: Tensor
    hashes: Tensor
    sizes: Tensor
    powers: Tensor
    letters: Tensor

    def __init__(self, schema: Mapping[str, Any], *, num_buckets: int, longest: int) -> None:
        super().__init__()
        self.num_buckets, self.longest = num_buckets, longest
        pieces = pieces_of(schema["tokenizer"])
        texts = [piece.lstrip("".join(MARKS)).removeprefix("##").lower() for piece in pieces]
        is_mark = any(piece.startswith(MARKS) for piece in pieces)
        is_continued = any(piece.startswith("##") and len(piece) > 2 for piece in pieces)
        begins = [
            piece.startswith(MARKS) if is_mark else not piece.startswith("##") if is_continued else True
            for piece in pieces
        ]
        is_word = [any(map(str.isalnum, text)) or piece in MARKS for text, piece in zip(texts, pieces, strict=True)]
        self.register_buffer("begins", torch.tensor(begins), persistent=False)
        self.register_buffer("is_word", torch.tensor(is_word), persistent=False)
        longest_piece = max(map(len, texts))
        beginnings = [[_hash(text[:size]) for size in range(longest_piece + 1)] for text in texts]
        self.register_buffer("hashes", torch.tensor(beginnings), persistent=False)
        self.register_buffer("sizes", torch.tensor([len(text) for text in texts]), persistent=False)
        powers = [pow(FACTOR, size, MODULUS) for size in range(longest_piece + 1)]
        self.register_buffer("powers", torch.tensor(powers), persistent=False)
        width = min(longest_piece, MOST_CHARACTERS)
        letters = [[ord(letter) + 1 for letter in text[:width]] + [0] * (width - len(text)) for text in texts]
        self.register_buffer("letters", torch.tensor(letters).view(len(texts), width), persistent=False)

    def forward(self, tokens: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return buckets of features, int64 [B, N * L], and which of those places hold one, bool [B, N * L]."""
        is_first = self.is_first(tokens, is_token)
        words, num_words = self.words(tokens, is_token, is_first)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        gram, found, is_there = words, [], []
        for size in range(1, self.longest + 1):
            if size > 1:
                gram = (gram * STEP + _later(words, size - 1)) % MODULUS
            found.append(gram + size)
            is_there.append(place < num_words - (size - 1))
        for size in STEMS:
            found.append(self.spelt(tokens, is_token, is_first, most=size) + self.longest + size)
            is_there.append(is_first)
        return self.buckets(found), torch.cat(is_there, dim=1)

    def buckets(self, found: list[Tensor]) -> Tensor:
        """Return the buckets of several kinds of hashes, side by side."""
        # Kinds of features differ by a little: a factor sends them far from each other.
        return torch.cat(found, dim=1) * FACTOR % MODULUS % self.num_buckets

    def characters(self, tokens: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return buckets of n-grams of characters within words, and which of those places hold one, [B, sizes * K]."""
        spelling, num_letters = self.spelling(tokens, is_token)
        gram, found, is_there = spelling, [], []
        is_within = torch.arange(spelling.shape[1], device=tokens.device) < num_letters
        fewest, most = CHARACTERS
        for size in range(2, most + 1):
            gram = (gram * FACTOR + _later(spelling, size - 1)) % MODULUS
            if size > 2:  # between its first and its last there is no end of a word
                is_within = is_within & (_later(spelling, size - 2) != 0)
            if size >= fewest:
                found.append(gram + self.longest + max(STEMS) + size)
                is_there.append(is_within)
        return self.buckets(found), torch.cat(is_there, dim=1)

    def spelling(self, tokens: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row's characters, 0 at either end of a word, [B, K], and how many there are, [B, 1]."""
        letters = functional.pad(self.letters[tokens], (1, 0))
        starts = functional.pad(self.is_first(tokens, is_token).unsqueeze(2), (0, letters.shape[2] - 1))
        letters, is_there = letters.flatten(1), (starts | (letters != 0) & is_token.unsqueeze(2)).flatten(1)
        number = is_there.long().cumsum(dim=1)
        index = torch.where(is_there, number - 1, letters.shape[1])
        empty = torch.zeros_like(functional.pad(letters, (0, 1)))
        return empty.scatter(1, index, letters)[:, :-1], number[:, -1:]

    def is_first(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        """Return which tokens begin a word, bool [B, L]."""
        is_word = self.is_word[tokens]
        follows_word = functional.pad(is_word & is_token, (1, 0))[:, :-1]
        return is_token & (self.begins[tokens] | ~is_word | ~follows_word)

    def words(self, tokens: Tensor, is_token: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hashes of a row's words, one after another, [B, L], and how many there are, [B, 1]."""
        number = is_first.long().cumsum(dim=1)
        # Pieces that begin no word go to a place that is cut off.
        index = torch.where(is_first, number - 1, tokens.shape[1])
        empty = torch.zeros_like(functional.pad(tokens, (0, 1)))
        spelt = self.spelt(tokens, is_token, is_first, most=self.hashes.shape[1] * MOST_PIECES)
        return empty.scatter(1, index, spelt)[:, :-1], number[:, -1:]

    def spelt(self, tokens: Tensor, is_token: Tensor, is_first: Tensor, *, most: int) -> Tensor:
        """Return the hash of the first `most` characters from each token to the end of its word, [B, L]."""
        sizes = self.sizes[tokens]
        left, word, goes_on = torch.full_like(tokens, most), torch.zeros_like(tokens), is_token
        for ahead in range(MOST_PIECES):
            if ahead:
                goes_on = goes_on & _later(is_token & ~is_first, ahead)
            size = torch.minimum(_later(sizes, ahead), left) * goes_on
            word = (word * self.powers[size] + self.hashes[_later(tokens, ahead), size]) % MODULUS
            left = left - size
        return word


def _later(values: Tensor, ahead: int) -> Tensor:
    """Values [B, L] that many places on; zeros behind the end."""
    length = values.shape[1]
    return functional.pad(values, (0, ahead))[:, ahead : ahead + length]


def _hash(text: str) -> int:
    value = 0
    for character in text:
        value = (value * FACTOR + ord(character) + 1) % MODULUS
    return value


def pieces_of(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return the text of each token id, as the tokenizer's json has it; empty for those that are no text."""
    content = json.loads(tokenizer["json"])
    vocab = content["model"]["vocab"]
    listed = enumerate(piece for piece, _ in vocab) if isinstance(vocab, list) else ((i, p) for p, i in vocab.items())
    pieces = [""] * int(tokenizer["vocab_size"])
    for index, piece in listed:
        if index < len(pieces):
            pieces[index] = piece
    for added in content.get("added_tokens", []):
        if added["id"] < len(pieces) and added.get("special"):
            pieces[added["id"]] = ""
    return pieces
