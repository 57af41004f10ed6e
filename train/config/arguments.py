"""The command line before Hydra reads it."""

from hydra._internal.utils import get_args_parser


def in_order(arguments: list[str]) -> list[str]:
    """Put the flags before the overrides where the two are mixed, which Hydra's parser does not take.

    Lightning's launcher mixes them too: it appends overrides to the command line of the other ranks.
    """
    overrides: list[str] = get_args_parser().parse_known_intermixed_args(arguments)[0].overrides
    places = [place for place, word in enumerate(arguments) if word in overrides]
    if not places or places[-1] - places[0] < len(places):
        return arguments
    return [word for word in arguments if word not in overrides] + overrides
