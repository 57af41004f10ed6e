"""Whether a value out of a yaml file fits an annotation."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from train.config.finding import did_you_mean


def misfits(value: Any, annotation: Any) -> Iterator[tuple[str, Any, str]]:
    """For each misfit: where below the value ("" for itself, "[1]", ".width"), the value there, and the broken rule.

    Strict: no string is read as a number and no number as a boolean. A list may stand for a tuple or set and a string
    for a path or enum member, since yaml has no other way to write them.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        # An annotation such as `Logger | bool` cannot be met by an object in yaml: only its other rules help the user.
        details = error.errors(include_url=False)
        told = [d for d in details if d["type"] != "needs_python_object"] or details[:1]
        by_place: dict[str, list[str]] = {}
        places: dict[str, Any] = {}
        for detail in told:
            path, found = _place(value, detail["loc"])
            places[path] = found
            by_place.setdefault(path, []).append(_rule(detail, annotation) + _quoting(detail, found))
        for path, rules in by_place.items():
            hint = did_you_mean(places[path], _literals(annotation)) if isinstance(places[path], str) else ""
            yield path, places[path], " or ".join(dict.fromkeys(rules)).replace(" or must be ", " or ") + hint


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        try:
            return TypeAdapter(annotation)
        except PydanticUserError:  # an annotation that pydantic cannot read accepts anything
            return None


def _place(value: Any, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Follow pydantic's location as far as it is in the value: it also names the members of a union."""
    path = ""
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            path, value = f"{path}[{step}]", value[step]
        elif isinstance(step, str) and isinstance(value, dict) and step in value:
            path, value = f"{path}.{step}", value[step]
    return path, value


def _rule(detail: ErrorDetails, annotation: Any) -> str:
    if detail["type"] == "needs_python_object":
        return f"must be {_name(annotation)}, given as a node with a `_target_`"
    text = re.sub(r"^(Input|Value|String|List|Dictionary|Value error,) (should|must) ", "must ", detail["msg"])
    text = text.replace("an object", "a mapping").replace("a valid dictionary", "a mapping")
    return re.sub(r"^Value error, ", "", text.replace("a valid array", "a list"))


def _quoting(detail: ErrorDetails, found: Any) -> str:
    wants_text = detail["type"] == "string_type" and isinstance(found, (int, float))
    return f"; the text is written '\"{json.dumps(found)}\"' on a command line" if wants_text else ""


def _name(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _literals(annotation: Any) -> list[str]:
    """The words of every Literal in an annotation."""
    args = get_args(annotation)
    return [word for arg in args for word in ([arg] if isinstance(arg, str) else _literals(arg))]
