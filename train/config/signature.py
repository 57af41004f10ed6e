"""What a constructor takes: the schema of its node in a config."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    Required,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)


@dataclass(frozen=True)
class Parameters:
    """Names with their annotations, in order; `takes_any` where a plain `**kwargs` takes every further name."""

    annotations: dict[str, Any]
    required: frozenset[str]
    positional: tuple[str, ...] = ()
    takes_any: bool = False


def of_callable(target: Callable[..., Any]) -> Parameters:
    """The parameters of a class or function; a built-in that shows no signature takes anything."""
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return Parameters({}, frozenset(), takes_any=True)
    hints = _hints(_constructor(target) if inspect.isclass(target) else target)
    annotations: dict[str, Any] = {}
    required: set[str] = set()
    positional: list[str] = []
    takes_any = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            expanded = _unpacked(hints.get(name))
            takes_any = expanded is None
            annotations |= expanded.annotations if expanded else {}
            required |= expanded.required if expanded else set()
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            annotations[name] = hints.get(name, Any)
            required |= {name} if parameter.default is parameter.empty else set()
            positional += [name] if parameter.kind is not parameter.KEYWORD_ONLY else []
    return Parameters(annotations, frozenset(required), tuple(positional), takes_any)


def of_typed_dict(kind: type) -> Parameters:
    """The keys of a TypedDict."""
    hints = {name: _without_qualifier(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    return Parameters(hints, frozenset(kind.__required_keys__))  # type: ignore[attr-defined]


def as_typed_dict(annotation: Any) -> type | None:
    """The TypedDict of an annotation `T` or `T | None`."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in kinds if is_typeddict(kind)), None)


def _constructor(kind: type) -> Any:
    return kind.__init__ if kind.__init__ is not object.__init__ else kind.__new__  # type: ignore[misc]


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see: take those that resolve
        return _resolvable_hints(inspect.unwrap(function))


def _resolvable_hints(function: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            holder = type("holder", (), {"__annotations__": {name: annotation}})
            hints |= get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    return hints


def _unpacked(annotation: Any) -> Parameters | None:
    """The keys of `**kwargs: Unpack[SomeTypedDict]`; None for any other `**kwargs`."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Unpack else None
    return of_typed_dict(kind) if kind is not None and is_typeddict(kind) else None


def _without_qualifier(hint: Any) -> Any:
    if get_origin(hint) in (Required, NotRequired):
        return get_args(hint)[0]
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) in (Required, NotRequired):
        inner, *extras = get_args(hint)
        return Annotated[(get_args(inner)[0], *extras)]
    return hint
