"""Load a file's weights into a network: choose among its state dicts, and find the normalisation of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robgib.errors import RobGIBError
from robgib.models.normalization import Normalization, Ported

__all__ = [
    "Fitted",
    "declared_normalizations",
    "fit",
    "load_into",
    "part_of",
    "tidy",
    "unused_tensors",
]

_WRAPPERS = ("module", "_orig_mod")
"""Names that torch's wrappers put into keys: data parallel and averaged models; compiled ones."""
_BESIDE = ("criterion", "loss", "loss_fn", "metrics", "train_metrics", "val_metrics", "test_metrics", "n_averaged")
_COUNTS = ("total_ops", "total_params", "n_averaged", "num_batches_tracked")
_TOP = "."
"""What the set of weights at the top of a file is called, where others lie in it."""


@dataclass(frozen=True)
class Fitted:
    """How a network was loaded from a file.

    Attributes:
        notes: what was taken off, and how it was read, a sentence each.
        left_out: what the file holds that is not in the network, a sentence each.
        normalization: what the file says is done to images in [0, 1] before they reach the network, else None.
    """

    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    normalization: Normalization | None = None


@dataclass(frozen=True)
class _Set:
    """A complete set of a network's weights: its place, tensors by the network's keys, and their keys in the file."""

    key: str
    prefix: str
    weights: dict[str, Tensor]
    used: frozenset[str]

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part) or _TOP


def tidy(key: str) -> str:
    """Return a key without the names of torch's wrappers.

    >>> tidy("module.teacher._orig_mod.head.bias")
    'teacher.head.bias'
    """
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict below a prefix, by their keys without it.

    >>> list(part_of({"module.teacher.bias": torch.ones(2), "student.bias": torch.ones(2)}, "teacher"))
    ['bias']
    """
    short = f"{tidy(prefix)}."
    return {tidy(key).removeprefix(short): t for key, t in state.items() if tidy(key).startswith(short)}


def fit(
    model: nn.Module,
    sets: Mapping[str, Mapping[str, Tensor]],
    source: str,
    *,
    wanted: str | None = None,
    declared: Sequence[Normalization] = (),
    normalized: bool = False,
) -> Fitted:
    """Load the one complete set of a network's weights in a file.

    A prefix that the network's keys have in the file (``module.``, ``model.``, ``backbone.`` …), or that the file's
    lack, and the names of torch's wrappers may be between them. What lies below a loss or a metric is no candidate, and
    the same weights twice are one set.

    Args:
        model: to load into.
        sets: state dicts by where they lie in the file.
        source: what the file is called in messages.
        wanted: which set: its key, its prefix, or both with a dot between.
        declared: normalisations that the file declares outside its weights.
        normalized: whether the caller gives the normalisation of images, which overrides the file's.

    Raises:
        RobGIBError: no set fits, or several do and ``wanted`` does not choose one; or the file brings a normaliser that
            cannot be applied.
    """
    own = model.state_dict()
    complete = [c for key, state in sets.items() for c in _complete(key, state, own) if _lies_in(c.label, wanted)]
    fitting = [c for c in complete if all(c.weights[k].shape == own[k].shape for k in own)]
    if not fitting:
        _refuse(complete[0].weights if complete else _nearest(sets, wanted), own, source)
    chosen, twins = _chosen(fitting, source, wanted)
    applied, pair, said = _applied(chosen, sets[chosen.key], model, source, () if normalized else declared, normalized)
    notes = [*_found_as(chosen, twins, own, alone=len(sets) == 1), *said]
    model.load_state_dict(chosen.weights)
    lost = unused_tensors(_unused(chosen, twins, sets[chosen.key], applied, pair), own)
    others = [key or _TOP for key in sets if key != chosen.key and key not in {c.key for c in twins}]
    if others and wanted is None:
        lost = (*lost, f"the file also holds {_some(others)}, which is not used (--weights-key chooses)")
    elif others:
        notes.append(f"the file also holds {_some(others)}")
    return Fitted(tuple(notes), lost, applied)


def _applied(
    chosen: _Set,
    state: Mapping[str, Tensor],
    model: nn.Module,
    source: str,
    declared: Sequence[Normalization],
    normalized: bool,
) -> tuple[Normalization | None, tuple[str, ...], list[str]]:
    """The normalisation that the file brings and the model lacks, the tensors that hold it, and what to say of it."""
    applied, pair = (None, ()) if normalized else _own_normalizer(chosen, state, model, source)
    where = f"the file holds a normaliser beside the network ({_some(pair)})"
    if applied is not None:
        return applied, pair, [f"{where}, which is applied"]
    if pair:
        return None, pair, [f"{where}, the same as inside it: it is applied once"]
    if not declared:
        return None, pair, []
    applied, note = _from_declared(declared, model)
    return applied, pair, [note]


def _unused(
    chosen: _Set,
    twins: Sequence[_Set],
    state: Mapping[str, Tensor],
    applied: Normalization | None,
    pair: tuple[str, ...],
) -> list[str]:
    """The keys of tensors that neither the network nor a copy of it nor its normaliser has."""
    known = set(chosen.used) | set(pair) | {k for c in twins if c.key == chosen.key for k in c.used}
    if pair and applied is not None:
        known |= {k for p in _pairs(state) if _normalization(state, p) == applied for k in p}
    return [k for k in state if k not in known and not k.endswith("num_batches_tracked")]


def _found_as(chosen: _Set, twins: Sequence[_Set], own: Mapping[str, Tensor], alone: bool) -> list[str]:
    """Describe the names, copies and precision of a network's weights in a file."""
    notes = [f"the prefix {chosen.prefix!r} was removed from the names of the weights"] if chosen.prefix else []
    if not alone:
        notes.append(f"the weights are those of {chosen.label!r}")
    if twins:
        notes.append(f"the file holds the same weights as {_some([c.label for c in twins])}")
    other = {v.dtype for k, v in chosen.weights.items() if v.dtype != own[k].dtype and v.is_floating_point()}
    if other:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other))
        notes.append(f"the weights are {names} in the file, and float32 in the network")
    return notes


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
    """Load a state dict strictly; the error names the first keys or shapes that do not fit (:func:`fit`).

    Returns:
        What was taken off or left out, a sentence each.

    Raises:
        RobGIBError: the state does not fit, or holds several sets of weights that do.
    """
    fitted = fit(model, {"": state}, source, normalized=True)
    return (*fitted.notes, *fitted.left_out)


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(repr(k) for k in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _lies_in(label: str, wanted: str | None) -> bool:
    """Whether a set is the wanted one, or lies in it."""
    if wanted is None or label == wanted:
        return True
    return any(w and f".{w}." in f".{name}." for name, w in ((label, wanted), (tidy(label), tidy(wanted))))


def _nearest(sets: Mapping[str, Mapping[str, Tensor]], wanted: str | None) -> Mapping[str, Tensor]:
    """Return the state dict that an error message compares with the network."""
    key, state = next(iter(sets.items()))
    rest = "" if wanted is None else wanted.removeprefix(f"{key}.") if key else wanted
    return (part_of(state, rest) if rest and rest != key else {}) or state


@dataclass(frozen=True)
class _Wanted:
    """A network's keys as a file may name them.

    Attributes:
        keys: the network's own keys by the names that are looked for.
        counts: names of counters, which a file may lack.
    """

    keys: Mapping[str, str]
    counts: frozenset[str]

    @classmethod
    def spellings(cls, own: Iterable[str]) -> list[_Wanted]:
        """The names as they are, and without the first part that all have in common."""
        plain = {tidy(k): k for k in own}
        firsts = {k.partition(".")[0] for k in plain}
        common = f"{firsts.pop()}." if len(firsts) == 1 and all("." in k for k in plain) else ""
        made = []
        for shorter in dict.fromkeys(("", common)):
            keys = {k.removeprefix(shorter): own_key for k, own_key in plain.items()}
            made.append(cls(keys, frozenset(k for k in keys if k.rpartition(".")[2] == "num_batches_tracked")))
        return made

    @property
    def needed(self) -> Set[str]:
        return self.keys.keys() - self.counts or self.keys.keys()

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """Prefixes in a file's names at which a set of weights may begin."""
        first = min(self.needed, default="")
        return [k.removesuffix(first) for k in names if k == first or k.endswith(f".{first}")]

    def weights(
        self, inside: Mapping[str, str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """A set's tensors by the network's keys; counters that the file lacks are the network's own."""
        found = {own_key: state[inside[k]] for k, own_key in self.keys.items() if k in inside}
        return found | {self.keys[k]: own[self.keys[k]] for k in self.counts - inside.keys()}


def _complete(key: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[_Set]:
    """Return all complete sets of a network's weights in a state dict, by names alone, shortest prefix first.

    There is no other tensor in it than those of what is beside a network, of a normaliser, and of another such set.
    """
    names = {tidy(k): k for k in state}
    pairs = _pairs(state)
    for wanted in _Wanted.spellings(own):
        prefixes = wanted.prefixes(names)
        candidates: list[_Set] = []
        for prefix in sorted(dict.fromkeys(prefixes), key=len, reverse=True):  # the inner ones first
            inside = {k.removeprefix(prefix): of for k, of in names.items() if k.startswith(prefix)}
            if not wanted.needed <= inside.keys():
                continue
            normalizers = {tidy(k) for p in pairs if _holder(p, prefix) is not None for k in p}
            inner = tuple(c.prefix for c in candidates if c.prefix)
            others = (k for k in inside if k not in wanted.keys and not _is_beside(k))
            if any(prefix + k not in normalizers and not (prefix + k).startswith(inner) for k in others):
                continue
            used = frozenset(of for k, of in inside.items() if k in wanted.keys)
            candidates.append(_Set(key, prefix, wanted.weights(inside, state, own), used))
        if candidates:
            return sorted(candidates, key=lambda c: (len(c.prefix), prefixes.index(c.prefix)))
    return []


def _is_beside(key: str) -> bool:
    """Whether a key belongs to a loss, a metric or a count of operations."""
    return key.partition(".")[0] in _BESIDE or key.rpartition(".")[2] in _COUNTS


def _chosen(fitting: list[_Set], source: str, wanted: str | None) -> tuple[_Set, list[_Set]]:
    """Return the chosen set, and the sets with equal weights."""
    exact = [c for c in fitting if wanted is not None and wanted in (c.label, tidy(c.label))]
    candidates = exact or [c for c in fitting if not any(p in _BESIDE for p in c.label.split("."))] or fitting
    kinds: list[list[_Set]] = []
    for one in candidates:
        same = next((kind for kind in kinds if _equal(kind[0].weights, one.weights)), None)
        if same is None:
            kinds.append([one])
        else:
            same.append(one)
    if len(kinds) > 1:
        labels = [kind[0].label for kind in kinds]
        raise RobGIBError(
            f"{source} holds {len(labels)} complete sets of the network's weights, {_some(labels)}; choose one "
            f"with --weights-key {labels[0]} (in Python weights_key={labels[0]!r})."
        )
    chosen = kinds[0][0]
    return chosen, [c for c in fitting if c is not chosen and _equal(c.weights, chosen.weights)]


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[k], two[k]) for k in one)


def _refuse(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise an error that says which keys and shapes do not fit."""
    problems = []
    if missing := [k for k in own if k not in state]:
        problems.append(f"it lacks {_some(missing)}")
    if extra := [k for k in state if k not in own]:
        problems.append(f"the architecture has no {_some(extra)}")
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        k = wrong[0]
        problems.append(
            f"{_some(wrong)} differ in shape ({tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model)"
        )
    raise RobGIBError(f"{source} does not fit the architecture: {'; '.join(problems)}.")


def unused_tensors(unused: Sequence[str], own: Iterable[str]) -> tuple[str, ...]:
    """Return a sentence on the tensors of a file that a network with the keys ``own`` does not use, if there are any.

    >>> unused_tensors(["head.bias"], ["body.weight"])
    ("1 tensor of the file was not used, since the network has none of these names: 'head.bias'",)
    """
    if not unused:
        return ()
    ends = tuple(f".{tidy(k)}" for k in own)
    none = "" if any(f".{tidy(k)}".endswith(ends) for k in unused) else ", since the network has none of these names"
    count = "1 tensor of the file was" if len(unused) == 1 else f"{len(unused)} tensors of the file were"
    return (f"{count} not used{none}: {_some(unused)}",)


# Normalisers: a mean and a standard deviation by channel, which a wrapper, a file or a network holds under usual names.

_MEANS = {"mean": ("std", "sd", "sigma", "stdev"), "means": ("stds", "sds"), "mu": ("sigma", "std", "sd")}
_WITH = {"new", "image", "img", "pixel", "input", "norm", "normalize", "normalise", "data", "channel", ""}
"""Words that such names have beside those of the two; ``running_mean`` is another thing."""
_MOST = 16  # channels


def _partners(name: str) -> list[str]:
    """Return possible names of the standard deviation beside a mean; none if the name is not a mean of images."""
    words = name.split("_")
    means = [w for w in words if w in _MEANS]
    if len(means) != 1 or not set(words) - set(means) <= _WITH:
        return []
    return ["_".join(other if w == means[0] else w for w in words) for other in _MEANS[means[0]]]


def _pairs(state: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of normalisers in a state dict: a mean and its standard deviation, or a mean alone."""
    pairs: list[tuple[str, ...]] = []
    for key, value in state.items():
        module, _, name = str(key).rpartition(".")
        if _numbers(value) is None or not (others := _partners(name)):
            continue
        place = f"{module}." if module else ""
        pairs.append((key, *[f"{place}{o}" for o in others if _numbers(state.get(f"{place}{o}")) is not None][:1]))
    return pairs


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Return the values per channel of a tensor, a list or a number."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            return None
        if value.numel() != max((1, *value.shape)):
            return None
        value = value.flatten().tolist() if value.numel() <= _MOST else []
    if isinstance(value, int | float):
        value = [value]
    if not isinstance(value, list | tuple) or not 0 < len(value) <= _MOST:
        return None
    plain = [float(v) for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
    return tuple(plain) if len(plain) == len(value) else None


def _normalization(tensors: Mapping[str, Any], pair: tuple[str, ...]) -> Normalization | None:
    """Return a mean and standard deviation as a normalisation of images in [0, 1]; None if they cannot be one."""
    values = [_numbers(tensors[key]) for key in pair]
    if len(values) != 2 or values[0] is None or values[1] is None or len(values[0]) != len(values[1]):
        return None
    mean, std = values[0], values[1]
    if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        return None
    return Normalization(tuple(round(m, 7) for m in mean), tuple(round(s, 7) for s in std))  # float32 holds no more


def _holder(pair: tuple[str, ...], prefix: str) -> str | None:
    """Return the module that contains both a normaliser and the network below a prefix; None if there is none."""
    module = tidy(pair[0]).rpartition(".")[0]
    holders = [m for m in (module, module.rpartition(".")[0]) if not m or prefix.startswith(f"{m}.")]
    return max(holders, key=len, default=None)


def _own_normalizer(
    chosen: _Set, state: Mapping[str, Tensor], model: nn.Module, source: str
) -> tuple[Normalization | None, tuple[str, ...]]:
    """Return the innermost normaliser of the wrappers around a set of weights, and its keys.

    Raises:
        RobGIBError: it cannot be applied.
    """
    places: dict[int, list[tuple[str, ...]]] = {}
    for pair in _pairs(state):
        holder = _holder(pair, chosen.prefix)
        if holder is not None and not set(pair) & chosen.used:
            places.setdefault(len(holder), []).append(pair)
    if not places:
        return None, ()
    pairs = places[max(places)]
    normalizations = {_normalization(state, pair) for pair in pairs}
    normalization = next(iter(normalizations))
    own = _of_network(model)
    why = (
        "there are several, and they differ" if len(normalizations) > 1
        else "it is not a mean in [0, 1] with a standard deviation in (0, 1] per channel" if normalization is None
        else "the architecture contains another one" if own and normalization not in own
        else ""
    )  # fmt: skip
    if why or normalization is None:
        raise RobGIBError(
            f"{source} holds a normaliser beside the network, {_some(k for p in pairs for k in p)}, that cannot be "
            f"applied ({why}); give the normalisation of images in [0, 1] with --normalize, or --mean, --std and "
            "--bounds (in Python normalization=)."
        )
    return (normalization, pairs[0]) if normalization not in own else (None, pairs[0])


def _of_network(model: nn.Module) -> set[Normalization]:
    """Return the normalisations inside a network that its modules show; without that of :class:`Ported`."""
    inside = model.net if isinstance(model, Ported) else model
    normalizations = set()
    for module in inside.modules():
        tensors = {**vars(module), **dict(module.named_buffers(recurse=False))}
        tensors |= dict(module.named_parameters(recurse=False))
        normalizations |= {_normalization(tensors, pair) for pair in _pairs(tensors)}
    return {n for n in normalizations if n is not None}


def _from_declared(declared: Sequence[Normalization], model: nn.Module) -> tuple[Normalization | None, str]:
    """Return the normalisation that a file declares outside its weights, and a sentence about it."""
    kinds = list(dict.fromkeys(declared))
    names = " or ".join(map(str, kinds))
    if len(kinds) > 1:
        return None, f"the file describes several normalisations ({names}): none is applied (--normalize chooses)"
    if _of_network(model):
        return (
            None,
            f"the file describes a normalisation ({names}), but the architecture has its own: only that one is applied",
        )
    return kinds[0], "the normalisation that the file describes is applied"


_DEEPEST_CONFIGURATION = 4


def declared_normalizations(content: Any, deep: int = _DEEPEST_CONFIGURATION) -> list[Normalization]:
    """Return the normalisations that a file's configuration declares, such as ``{"mean": [0.5], "std": [0.25]}``.

    >>> declared_normalizations({"args": {"image_mean": [0.5], "image_std": [0.25]}, "epoch": 3})[0].std
    (0.25,)
    """
    if not isinstance(content, Mapping):
        return []
    plain = {k: v for k, v in content.items() if isinstance(k, str)}
    if plain.get("do_normalize") is False:
        return [Normalization()]
    pairs = [pair for pair in _pairs(plain) if "." not in pair[0]]
    normalizations = [n for n in (_normalization(plain, pair) for pair in pairs) if n is not None]
    for value in plain.values() if deep > 1 else ():
        normalizations += declared_normalizations(value, deep - 1)
    return normalizations
