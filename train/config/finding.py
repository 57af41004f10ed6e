"""One thing that is wrong with a configuration, and the list of them that a user reads."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """`rule` is broken at `key`; `value` is its text, None where there is none; `origin` is a file or an override."""

    key: str
    rule: str
    value: str | None = None
    origin: str | None = None

    def __str__(self) -> str:
        lines = [self.key if self.value is None else f"{self.key}: {self.value}", f"  {self.rule}"]
        if self.origin:
            lines.append(f"  from {self.origin}")
        return "\n".join(f"  {line}" for line in lines)


def message(findings: Iterable[Finding]) -> str:
    """All findings as one text."""
    parts = [str(finding) for finding in findings]
    return "\n\n".join([f"Configuration: {len(parts)} {'error' if len(parts) == 1 else 'errors'}.", *parts])


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """`; did you mean 'x'?` for the closest of the known words, or nothing."""
    names = {str(name).lower(): str(name) for name in known}
    close = get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def shown(value: object, limit: int = 80) -> str:
    """A value in one short line."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def seen_from_here(path: Path) -> Path:
    """A path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
