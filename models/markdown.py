"""Tables in Markdown, as TensorBoard shows them."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One line a row; what would end a cell or a line in a text is escaped or a space."""
    lines = [" | ".join(header), "|".join(["---"] * len(header))]
    return "\n".join([*lines, *(" | ".join(map(_cell, row)) for row in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
