"""Phrases that Babel's CLDR data put into two languages: dates, durations, amounts, units, names and lists of them."""

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Literal, TypeVar

from babel import Locale, dates, lists, numbers, units
from babel.core import get_global

Phrase = Callable[[Locale], str]  # the same fact in any language
Of = TypeVar("Of")

STYLES = ("full", "long", "medium", "short")
SKELETONS = ("MMMMd", "yMMMM", "yMMMEd", "yQQQQ", "EHm")
INTERVALS = ("yMMMd", "yMMMEd", "MMMd", "yMMMM")
SECONDS = (60, 3_600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)
KINDS = ("area", "digital", "duration", "energy", "length", "mass", "power", "speed", "temperature", "volume")
MEASURES = tuple(f"{kind}-" for kind in KINDS)
NO_MEASURES = ("speed-light-speed", *(f"duration-{unit}-person" for unit in ("year", "month", "week", "day")))
FIRST_DAY, NUM_DAYS = datetime.date(1950, 1, 1), 36_525
MOST_DRAWS = 20  # for each pair: phrases that were there are drawn again
SPACES = re.compile(r"\s+")  # CLDR's are of many widths, which no reader tells apart


@dataclass(frozen=True)
class Names:
    """What both languages have a name for, as CLDR's codes."""

    territories: list[str]
    languages: list[str]
    currencies: list[str]
    units: list[str]

    @classmethod
    def of(cls, source: Locale, target: Locale) -> "Names":
        """Countries, their currencies of today, languages with a code of two letters (the better known), measures."""
        countries = get_global("territory_currencies").keys() & source.territories.keys() & target.territories.keys()
        money = {name for country in countries for name in numbers.get_territory_currencies(country)}
        languages = {name for name in source.languages.keys() & target.languages.keys() if len(name) == 2}
        named = [set(dict(locale.unit_display_names)) for locale in (source, target)]
        measures = {name for name in named[0] & named[1] if name.startswith(MEASURES) and name not in NO_MEASURES}
        money &= source.currencies.keys() & target.currencies.keys()
        return cls(sorted(countries), sorted(languages), sorted(money), sorted(measures))


Draw = Callable[[Random, Names], Phrase]


def pairs(source: Locale, target: Locale, *, num_pairs: int, seed: int) -> Iterator[tuple[str, str]]:
    """Different sources with their targets, all kinds alike where they have enough; the same for the same seed.

    Raises ValueError if there are not so many.
    """
    random, names, seen = Random(seed), Names.of(source, target), set[str]()
    for draw, _ in zip(cycle(DRAWS), range(MOST_DRAWS * num_pairs), strict=False):
        phrase = draw(random, names)
        text = SPACES.sub(" ", phrase(source))
        if text not in seen:
            seen.add(text)
            yield text, SPACES.sub(" ", phrase(target))
            if len(seen) == num_pairs:
                return
    raise ValueError(f"num_pairs must be at most about {len(seen):,}, for so many phrases there are; got {num_pairs:,}")


def draw_date(random: Random, names: Names) -> Phrase:
    """Tuesday, November 3, 2026."""
    day, style = _day(random), _one(random, STYLES)
    return lambda locale: dates.format_date(day, style, locale=locale)


def draw_moment(random: Random, names: Names) -> Phrase:
    """Nov 3, 2026, 3:05 PM; November 2026; 4th quarter 2026."""
    moment = datetime.datetime.combine(_day(random), datetime.time(random.randrange(24), random.randrange(60)))
    skeleton = _one(random, (*SKELETONS, ""))
    if skeleton:
        return lambda locale: dates.format_skeleton(skeleton, moment, locale=locale)
    return lambda locale: dates.format_datetime(moment, "short", locale=locale)


def draw_interval(random: Random, names: Names) -> Phrase:
    """Nov 3 – 7, 2026."""
    start, skeleton = _day(random), _one(random, INTERVALS)
    end = start + datetime.timedelta(days=1 + random.randrange(_one(random, (20, 300))))
    return lambda locale: dates.format_interval(start, end, skeleton, locale=locale)


def draw_duration(random: Random, names: Names) -> Phrase:
    """3 hours; in 3 hours; 3 hours ago."""
    delta = datetime.timedelta(seconds=_one(random, SECONDS) * (1 + random.randrange(12)))
    signed, has_direction = (-delta if random.randrange(2) else delta), random.randrange(3) > 0
    return lambda locale: dates.format_timedelta(signed, threshold=1, add_direction=has_direction, locale=locale)


def draw_amount(random: Random, names: Names) -> Phrase:
    """1,234.50 US dollars; €12.50; 1.2 million; 12.5 %."""
    number, currency, kind = _number(random), _one(random, names.currencies), random.randrange(4)
    if kind == 0:
        return lambda locale: numbers.format_percent(number / 100, "#,##0.#%", locale=locale)
    if kind == 1:
        large = number * 10 ** (2 + random.randrange(6))
        return lambda locale: _compact(large, locale)
    style: Literal["name", "standard"] = "name" if kind == 2 else "standard"
    return lambda locale: numbers.format_currency(number, currency, format_type=style, locale=locale)


def draw_measure(random: Random, names: Names) -> Phrase:
    """12.5 kilometers."""
    number, unit = _number(random), _one(random, names.units)
    return lambda locale: units.format_unit(number, unit, locale=locale)


def draw_name(random: Random, names: Names) -> Phrase:
    """Germany; Italian; Swiss franc."""
    kind = random.randrange(3)
    code = _one(random, (names.territories, names.languages, names.currencies)[kind])
    return lambda locale: str((locale.territories, locale.languages, locale.currencies)[kind][code])


def draw_list(random: Random, names: Names) -> Phrase:
    """Germany, Italian, or 12 kilometers."""
    draw = _one(random, (draw_name, draw_name, draw_measure, draw_duration))
    style: Literal["standard", "or"] = "or" if random.randrange(2) else "standard"
    parts = [draw(random, names) for _ in range(2 + random.randrange(3))]
    return lambda locale: lists.format_list([part(locale) for part in parts], style, locale=locale)


DRAWS: tuple[Draw, ...] = (
    draw_date,
    draw_moment,
    draw_interval,
    draw_duration,
    draw_amount,
    draw_measure,
    draw_name,
    draw_list,
    draw_list,  # most of what there is to say
)


def _one(random: Random, choices: Sequence[Of]) -> Of:
    return choices[random.randrange(len(choices))]


def _compact(number: float, locale: Locale) -> str:
    """1.2 million, as far as the language has a word for it: Japanese has 億 alone, Maltese neither."""
    style: Literal["long", "short"] = "long" if "long" in locale.compact_decimal_formats else "short"
    if style not in locale.compact_decimal_formats:
        return numbers.format_decimal(number, locale=locale)
    return numbers.format_compact_decimal(number, format_type=style, fraction_digits=1, locale=locale)


def _day(random: Random) -> datetime.date:
    return FIRST_DAY + datetime.timedelta(days=random.randrange(NUM_DAYS))


def _number(random: Random) -> float:
    """Small whole numbers, whose plural is to be found, as often as larger ones and fractions."""
    whole = 1 + random.randrange(_one(random, (10, 100, 1_000, 20_000)))
    return whole if random.randrange(3) else whole + random.randrange(1, 10) / 10
