"""The part of a checkpoint that fits the encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from influence_ssl.errors import InfluenceValueError

# What DistributedDataParallel and torch.compile put into names.
_WRAPPERS = frozenset({"module", "_orig_mod"})

# What follows an encoder in a network that holds both: classifiers, projections, decoders.
_HEAD = re.compile(
    r"(fc|classifier|last_linear|heads?|head_dist|proj(ector|ection(_head)?)|projection_mlp"
    r"|predict(or|ion(_head)?)|prototypes|mask_token|decoder(_\w+)?)$"
)

# A momentum copy and its partner: the same name, but for this word.
_COPIES = {
    "momentum": ("", "base", "online"),
    "m": ("",),
    "target": ("online",),
    "k": ("q",),
    "key": ("query",),
}


# The number of batches that a normalisation saw, which no forward pass in eval mode reads.
_COUNTER = "num_batches_tracked"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int16, torch.int32, torch.int64)


@dataclass
class Part:
    """The names of a checkpoint that begin with ``prefix`` and belong to the encoder.

    ``names`` maps the encoder's names to the checkpoint's, and ``children`` maps numbers to
    children if the checkpoint numbers them. ``fitting`` counts names with the right type and shape.
    ``missing``, ``other`` (type or shape) and ``foreign`` names do not fit; ``left`` lists heads.
    """

    prefix: str
    names: dict[str, str]
    children: dict[str, str] = field(default_factory=dict)
    fitting: int = 0
    missing: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing and not self.other


def find_part(
    encoder: nn.Module,
    tensors: Mapping[str, Tensor],
    file: str,
    dropped: tuple[str, ...] = (),
    wanted: str | None = None,
) -> Part:
    """The one part of a checkpoint whose names, types and shapes are those of the encoder.

    Every prefix is tried, and names are compared without what DistributedDataParallel and
    torch.compile add to them. An encoder's children may also be numbered, as in
    ``nn.Sequential(*encoder.children())``. ``dropped`` holds the prefixes of a classifier that was
    removed from the encoder. A head (``fc``, ``projector``, ``decoder_...``) that the encoder lacks
    is left out. A momentum copy (``momentum_X`` beside ``X``, ``target_X`` beside ``online_X``,
    ``X_k`` beside ``X_q``) is ignored, and parts with equal values count as one. ``wanted``
    restricts the search to names that begin with it. Raises :class:`InfluenceValueError`, which
    names ``file``, if no part fits or several do.
    """
    own = {k: v for k, v in encoder.state_dict().items() if isinstance(v, Tensor)}
    parts = [_judged(part, own, tensors) for part in _parts(encoder, own, tensors)]
    complete = [part for part in parts if part.complete]
    taken = {name for part in complete for name in part.names.values()}
    for part in parts:
        _look_beside(part, taken, own, tensors, dropped)
    if wanted is not None:
        parts = _restricted(parts, tensors, file, wanted)
    # Before any part is judged to fit, because the copy of a damaged encoder is no substitute.
    parts = _without_copies(parts)
    fitting = [part for part in parts if part.complete and not part.foreign]
    if not fitting:
        raise InfluenceValueError(
            f"--weights {file!r} does not fit the encoder{_why(parts, own, tensors)}."
        )
    distinct = _distinct(fitting, tensors)
    if len(distinct) > 1:
        named = " and ".join(repr(part.prefix) for part in distinct)
        raise InfluenceValueError(
            f"--weights {file!r} holds {len(distinct)} encoders that fit, under {named}; choose "
            f"one, for instance with --weights-part {distinct[-1].prefix.rstrip('.')!r}."
        )
    return distinct[0]


def few(names: Sequence[str], shown: int = 4) -> str:
    """The first names, and the number of further ones."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _bare(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def _parts(
    encoder: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Iterator[Part]:
    """Every prefix under which a name of the encoder occurs, in each way of writing its names."""
    bare = {_bare(name): name for name in own}
    numbers = {name: str(k) for k, (name, _) in enumerate(encoder.named_children())}
    numbered = {}
    for original in own:
        first, _, rest = original.partition(".")
        if first in numbers:
            numbered[_bare(f"{numbers[first]}.{rest}")] = original
    children = {number: name for name, number in numbers.items()}
    writings: list[tuple[dict[str, str], bool, dict[str, str]]] = [
        ({name: name for name in own}, False, {}),
        (bare, True, {}),
        (numbered, True, children),
    ]
    seen = set()
    for writing, without_wrappers, children in writings:
        for prefix, names in _matches(writing, tensors, without_wrappers).items():
            key = (prefix, frozenset(names.items()))
            if key not in seen:
                seen.add(key)
                yield Part(prefix, names, children)


def _matches(
    writing: Mapping[str, str], tensors: Mapping[str, Tensor], without_wrappers: bool
) -> dict[str, dict[str, str]]:
    """Prefix to (encoder's name to checkpoint's name), for every name that ends as one of these."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        words = name.split(".")
        for k, word in enumerate(words):
            # A wrapper is the end of a prefix, not the beginning of a name.
            if without_wrappers and word in _WRAPPERS:
                continue
            tail = ".".join(words[k:])
            original = writing.get(_bare(tail) if without_wrappers else tail)
            if original is not None:
                prefix = "".join(f"{word}." for word in words[:k])
                found.setdefault(prefix, {}).setdefault(original, name)
    return found


def _judged(part: Part, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Part:
    for name, mine in own.items():
        if name.endswith(_COUNTER):
            continue
        if name not in part.names:
            part.missing.append(name)
            continue
        given = tensors[part.names[name]]
        if _family(given) != _family(mine):
            part.other.append(f"{name} is {_dtype(given)} instead of {_dtype(mine)}")
        elif given.shape != mine.shape:
            part.other.append(f"{name} is {tuple(given.shape)} instead of {tuple(mine.shape)}")
        else:
            part.fitting += 1
    return part


def _family(tensor: Tensor) -> str:
    """The family of a type; conversion within a family preserves the meaning."""
    if tensor.dtype in _FLOATS:
        return "floating point"
    return "integer" if tensor.dtype in _INTEGERS else _dtype(tensor)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _restricted(
    parts: list[Part], tensors: Mapping[str, Tensor], file: str, wanted: str
) -> list[Part]:
    start = f"{wanted.removesuffix('.')}." if wanted else ""
    exact = [part for part in parts if part.prefix == start]
    if any(part.complete for part in exact):
        return exact
    within = [part for part in parts if part.prefix.startswith(start)]
    if not within:
        fitting = [repr(part.prefix) for part in parts if part.complete]
        tops = list(dict.fromkeys(f"'{name.partition('.')[0]}'" for name in tensors))
        instead = f"give {few(fitting)}" if fitting else f"the file holds {few(tops)}"
        raise InfluenceValueError(
            f"--weights {file!r} holds nothing of the encoder under --weights-part {wanted!r}; "
            f"{instead}."
        )
    return within


def _look_beside(
    part: Part,
    taken: set[str],
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    dropped: tuple[str, ...],
) -> None:
    """Sort the other names under the part's prefix into heads to leave out and foreign names."""
    taken = taken | set(part.names.values())
    # Every module and parameter of the encoder, by its path.
    paths = {path for name in own for path in _paths(_bare(name))}
    for name in tensors:
        if name in taken or not name.startswith(part.prefix) or name.endswith(_COUNTER):
            continue
        first, dot, rest = _bare(name.removeprefix(part.prefix)).partition(".")
        path = part.children.get(first, first) + dot + rest
        *modules, _ = _paths(path) if dot else (path, "")
        head = next((module for module in modules if module not in paths), None)
        # Where something is missing, a head may be that under another name.
        known = path.startswith(dropped) or (part.complete and _HEAD.match(path.partition(".")[0]))
        if head is None or not known:
            part.foreign.append(path)
        elif head not in part.left:
            part.left.append(head)


def _paths(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[: k + 1]) for k in range(len(words))]


def _without_copies(parts: list[Part]) -> list[Part]:
    """The parts that are not the momentum copy of another part."""
    prefixes = {_bare(part.prefix) for part in parts}
    return [part for part in parts if not prefixes & set(_partners(_bare(part.prefix)))]


def _partners(prefix: str) -> Iterator[str]:
    """The names of which this one would be the momentum copy."""
    segments = prefix.split(".")
    for k, segment in enumerate(segments):
        words = segment.split("_")
        for j, word in enumerate(words):
            for instead in _COPIES.get(word, ()):
                other = "_".join(words[:j] + [instead] * bool(instead) + words[j + 1 :])
                if other:
                    yield ".".join([*segments[:k], other, *segments[k + 1 :]])


def _distinct(parts: list[Part], tensors: Mapping[str, Tensor]) -> list[Part]:
    """One part of each set of values."""
    found: list[Part] = []
    for part in parts:
        if not any(_equal(part, other, tensors) for other in found):
            found.append(part)
    return found


def _equal(a: Part, b: Part, tensors: Mapping[str, Tensor]) -> bool:
    return all(
        name in b.names
        and tensors[file].dtype == tensors[b.names[name]].dtype
        and tensors[file].equal(tensors[b.names[name]])
        for name, file in a.names.items()
        if not name.endswith(_COUNTER)
    )


def _why(parts: list[Part], own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the part that fits best."""
    # A bare number is too common a name to indicate a match.
    parts = [part for part in parts if part.fitting or not part.children]
    if not parts:
        return (
            f": no name in it ends like one of the encoder's, such as {next(iter(own), 'none')!r}; "
            f"the first of its {len(tensors)} names is {next(iter(tensors))!r}; give the encoder "
            "that was trained, or load it in the encoder's function"
        )
    best = max(parts, key=lambda part: (part.fitting, len(part.names), -len(part.foreign)))
    problems = [
        f"{what}: {few(names, 1)}"
        for what, names in (
            ("other shapes or types", best.other),
            ("missing keys", best.missing),
            ("foreign keys", best.foreign),
        )
        if names
    ]
    where = f" under {best.prefix!r}" if best.prefix else ""
    instead = "save the state_dict of exactly this module, or load it in the encoder's function"
    known = (*_FLOATS, *_INTEGERS, torch.bool)
    if any(tensors[name].dtype not in known for name in best.names.values()):
        instead = "give the checkpoint from before the quantisation"
    return f"{where}: {'; '.join(problems)}; {instead}"
