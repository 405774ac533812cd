"""Change the structure of a built model: the only way in which the library does so.

Quantisation, LoRA and tensor parallelism each put a class of their own in the place of
Linear layers, after the weights are loaded. The core knows nothing of it.
"""

from collections.abc import Callable

from torch import nn

Match = type[nn.Module] | Callable[[str, nn.Module], bool]


def swap_modules(
    model: nn.Module,
    match: Match,
    make: Callable[[nn.Module], nn.Module],
    *,
    untie: bool = False,
) -> list[str]:
    """Replace every module that matches by `make(module)`, and return their names.

    `match` is a class, or a function of name and module such as
    `lambda name, module: name.endswith("attention.wq")`. Modules are replaced in place,
    one at a time, each let go before the next is made: memory never holds two of
    everything. So if `make` raises, those already replaced stay replaced. A module that
    stands in two places is made once. The new one gets the training mode of the old.

    Raises ValueError, and changes nothing, if nothing matches, if one match lies inside
    another, or if a match shares a weight with another module, as tied embeddings do,
    and what `make` returns does not hold that weight: the two would part silently. Pass
    `untie=True` if they may.
    """
    places = _matches(model, match)
    tied = {} if untie else {place[0]: _shared(model, place) for place in places}
    # The tied ones first: where they must be refused, nothing has changed yet.
    for place in sorted(places, key=lambda place: not tied.get(place[0])):
        name = place[0]
        old = model.get_submodule(name)
        new = make(old)
        if not isinstance(new, nn.Module):
            raise ValueError(
                f"make returned {type(new).__name__} for {name}: it must be a module"
            )
        kept = {id(weight) for weight in new.parameters()}
        for weight, others in tied.get(name, {}).items():
            if weight not in kept:
                raise ValueError(
                    f"{name} shares a weight with {', '.join(others)} (tied embeddings "
                    "do), and a swap would part them: leave it out of the match, or "
                    "pass untie=True if they may part"
                )
        new.train(old.training)
        for path in place:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
        del old, new
    return [path for place in places for path in place]


def _matches(model: nn.Module, match: Match) -> list[list[str]]:
    """The paths of each module that matches, in the model's order."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(match, type):
            found = isinstance(module, match)
        else:
            found = match(name, module)
        if found:
            places.setdefault(id(module), []).append(name)
    names = [name for place in places.values() for name in place]
    if not names:
        some = [name for name, _ in model.named_modules() if name][:4]
        raise ValueError(
            f"no module matches: the names here are like {', '.join(some)}"
        )
    if "" in names:
        raise ValueError(
            "the model itself matches, and has no place to be replaced in: narrow the "
            "match"
        )
    for name in names:
        inside = [other for other in names if other.startswith(f"{name}.")]
        if inside:
            raise ValueError(
                f"both {name} and {inside[0]} inside it match: narrow the match to one"
            )
    return list(places.values())


def _shared(model: nn.Module, place: list[str]) -> dict[int, list[str]]:
    """The weights at `place` that others hold as well, by id, and who those are."""

    def within(path: str) -> bool:
        return any(path == own or path.startswith(f"{own}.") for own in place)

    mine = {id(weight) for weight in model.get_submodule(place[0]).parameters()}
    shared: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            if id(weight) in mine and not within(path):
                shared.setdefault(id(weight), []).append(path)
    return shared
