"""Options: each is declared once, with its type and bounds, and checked here.

A class of options is a frozen dataclass whose types carry their bounds (pydantic's ``Annotated[int, Field(ge=1)]``),
and whose ``__post_init__`` calls :func:`check`. Attacks and estimators declare theirs in this way.

The options of an evaluation are five such classes. The command line, ``robgib.evaluate``, the configuration file and
the record of a run are made from them: an option is defined here and used in one other place.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, ValidationError, create_model

from robgib.errors import RobGIBError, boolean_as_number, place_text, sentence_of, unknown_name
from robgib.files import Parts
from robgib.progress import Progress

__all__ = [
    "AtLeastOne",
    "AttackOptions",
    "Context",
    "Count",
    "EngineOptions",
    "InformationOptions",
    "ModelOptions",
    "NonNegative",
    "Option",
    "Positive",
    "ReportOptions",
    "Seed",
    "Share",
    "Width",
    "check",
    "construct",
    "former_names",
    "gather",
    "option",
    "option_of",
    "or_default",
    "plain_options",
]

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number of at least 0."""
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""A finite number of at least 1."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A whole number that every random generator accepts."""

T = TypeVar("T")


@functools.cache
def _model(kind: type[Any]) -> type[BaseModel]:
    """The fields of a dataclass as a pydantic model."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError:  # a class defined inside a function may use local names
        hints = {}
    fields = {f.name: (hints.get(f.name, Any), None) for f in dataclasses.fields(kind) if f.init}
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=False)
    return create_model(kind.__name__, __config__=config, **fields)  # type: ignore[call-overload]


def check(options: Any, what: str) -> None:
    """Check a dataclass of options against its types, and convert values such as ``"20"`` or NumPy's numbers.

    Args:
        options: the dataclass, frozen or not.
        what: owner of the options, for the message.

    Raises:
        RobGIBError: an option out of its bounds or of another type.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Walk:
    ...     steps: Count = 10
    ...     def __post_init__(self):
    ...         check(self, "Walk")
    >>> Walk(steps=0)
    Traceback (most recent call last):
    ...
    robgib.errors.RobGIBError: Walk's steps must be at least 1, not 0.
    """
    given = {f.name: _plain(getattr(options, f.name)) for f in dataclasses.fields(options) if f.init}
    for name, value in _checked(type(options), given, what).items():
        object.__setattr__(options, name, value)


def construct(kind: type[Any], parameters: Mapping[str, Any], what: str, **fixed: Any) -> Any:
    """Make a dataclass of options from named parameters.

    Args:
        kind: the dataclass.
        parameters: values by name, as the user gave them.
        what: owner of the parameters, for the message.
        fixed: further fields, which no parameter may name.

    Raises:
        RobGIBError: an unknown parameter, or a value that the class does not accept.
    """
    parameters = _with_present_names(kind, parameters, what)
    known = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in fixed]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of {what}:", key, [*known, *fixed])
    return kind(**fixed, **_checked(kind, parameters, what))


def former_names(**present: str) -> Callable[[type[T]], type[T]]:
    """Let the decorated dataclass take its fields by former names too, each given with its present name.

    >>> from dataclasses import dataclass
    >>> @former_names(length="steps")
    ... @dataclass(frozen=True)
    ... class Walk:
    ...     steps: int = 10
    >>> Walk(length=3), Walk(3).length
    (Walk(steps=3), 3)
    """

    def decorate(kind: type[T]) -> type[T]:
        make: Callable[..., None] = kind.__init__

        @functools.wraps(make)
        def initialise(self: T, *values: Any, **given: Any) -> None:
            named = {present[k]: v for k, v in given.items() if k in present}
            make(self, *values, **{k: v for k, v in given.items() if k not in present} | named)

        kind.__init__ = initialise  # type: ignore[method-assign, assignment]
        kind._former_names = present  # type: ignore[attr-defined]
        for former, name in present.items():
            setattr(kind, former, property(operator.attrgetter(name), doc=f"Former name of :attr:`{name}`."))
        return kind

    return decorate


def _with_present_names(kind: type[Any], parameters: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    present: Mapping[str, str] = getattr(kind, "_former_names", {})
    for former, name in present.items():
        if former in parameters and name in parameters:
            raise RobGIBError(f"{what}: {former} is the former name of {name}; give {name} alone.")
    return {present.get(key, key): value for key, value in parameters.items()}


def _checked(kind: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    return _fitted(_model(kind), given, what)  # type: ignore[arg-type]


def _fitted(model: type[BaseModel], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The given values, converted to the model's types."""
    try:
        checked = model(**given)
    except ValidationError as error:
        raise RobGIBError(sentence_of(error, what)) from error
    values = {name: getattr(checked, name) for name in given}
    place = boolean_as_number(given, values)
    if place is not None:
        was: Any = given
        value: Any = values
        for key in place:
            was, value = was[key], value[key]
        noun = "a whole number" if isinstance(value, int) else "a number"
        name = place_text(place)
        whose = f"{what}: {name}" if what.endswith("'") else f"{what}'s {name}" if what else name
        raise RobGIBError(f"{whose} must be {noun}, not {was}.")
    return values


def _plain(value: Any) -> Any:
    """A NumPy number as Python's."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def _share(value: Any) -> Any:
    """A share as a number; ``40%`` becomes 0.4."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError("must be a share such as 40% or 0.4") from None


Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
"""A share of 1, also written as 40%."""
Width = Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)]
"""The width of an interval of shares, also written as 2%."""


@dataclass(frozen=True)
class Option:
    """How an option is offered on the command line and in a configuration file.

    Attributes:
        help: one sentence.
        flag: on the command line; None is the field's name with hyphens.
        shown: the default in the help; None shows the value.
        text: whether the command line passes it as text, for :func:`check` to convert.
        runs_code: whether it can name code; a configuration file may set it only with ``--allow-code``.
        from_file: whether a configuration file may set it.
    """

    help: str
    flag: str | None = None
    shown: str | None = None
    text: bool = False
    runs_code: bool = False
    from_file: bool = True


def option(default: Any, help: str, **how: Any) -> Any:
    """Declare a field of a class of options: its default, its help, and the other attributes of :class:`Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **how)})


def option_of(field: dataclasses.Field[Any]) -> Option | None:
    """The :class:`Option` of a field; None if the command line and files do not offer it."""
    return field.metadata.get("option")


class _Checked:
    """Base of dataclasses that check their fields."""

    _called: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        check(self, self._called)


@dataclass(frozen=True)
class ModelOptions(_Checked):
    """How to read a model and its pictures.

    >>> ModelOptions(normalize="cifar10").input_size is None
    True
    """

    arch: str | None = option(
        None, "Architecture of checkpoint files: package.module:factory, or a name.", runs_code=True
    )
    data: str | None = option(
        None, "Data set, in place of the model's own: a name of `robgib data list`, folder:DIR or npz:FILE."
    )
    classes: str | None = option(
        None, "The model's classes in its order, if the folders number theirs differently: imagenet, or a file."
    )
    class_subset: bool | None = option(
        None,
        "Restrict predictions to the classes of the data.",
        flag="--class-subset/--no-class-subset",
        shown="if --classes names more classes than the data",
    )
    weights_key: str | None = option(
        None, "Key or prefix of one of several networks in a checkpoint file, such as state_dict_ema or teacher."
    )
    normalize: str | None = option(
        None,
        "How inputs were normalised in training: imagenet, cifar10, half, … or none.",
        shown="as in the file or the architecture",
    )
    mean: str | None = option(None, "Mean of each channel, as 0.5,0.5,0.5, in place of --normalize.")
    std: str | None = option(None, "Standard deviation of each channel.")
    bounds: str | None = option(
        None, "Values of black and white that the network expects, as -1,1 or 0,255.", shown="0,1"
    )
    data_bounds: str | None = option(
        None,
        "Values of black and white in npz: and folder: data, as 0,16.",
        shown="0,255 for 8-bit data, otherwise 0,1",
    )
    input_size: Count | None = option(None, "Resize the shorter side to this length, then crop the central square.")
    resize: Count | None = option(None, "Resize the shorter side to this length.")
    crop: Count | None = option(None, "Side of the central square crop.")
    interpolation: str = option(
        "bilinear", "Interpolation of --input-size and --resize: nearest, bilinear, bicubic or lanczos."
    )
    allow_pickle: bool = option(
        False,
        "Unpickle .pt and .pth files that hold more than weights. [red]They can run any code.",
        from_file=False,
    )
    allow_code: bool = option(
        False,
        "Import package.module:factory that recipes, records and studies name; read TorchScript and .pt2 with any "
        "operators. [red]This runs code that a file brings.",
        from_file=False,
    )


@dataclass(frozen=True)
class AttackOptions(_Checked):
    """Which attacks to run, and what else to measure.

    >>> AttackOptions(until_width="2%").until_width
    0.02
    """

    attacks: Any = option(
        "standard",
        "Attack of `robgib attacks list`, as NAME[:key=value,…]; repeatable.",
        flag="--attack",
        shown="--standard",
    )
    norm: str | Sequence[str] | None = option(
        None, "Norm of the attacks: linf, l2, l1 or l0; repeatable.", shown="the customary one of the data set"
    )
    eps: float | str | Sequence[float | str] | None = option(
        None,
        "Radius of the norm, as 8/255; repeatable, one for each --norm.",
        shown="the customary one of the data set",
    )
    mask: Any = option(
        None,
        "Pixels that may change (not 0): a .npy file for all images or for each, or a folder of masks by picture name.",
        text=True,
    )
    targets: Any = option(
        None, "Target class of each test image, a .npy or .csv file; only the target counts as success.", text=True
    )
    transfer_from: Any = option(
        None, "Attack this model, a surrogate, and judge the images on the models under evaluation.", text=True
    )
    samples: Count | None = option(None, "Test images to attack.", shown="all")
    cascade: bool | None = option(
        None, "Run attacks from the cheapest on, each on the samples that are still classified correctly."
    )
    curve: bool | None = option(
        None,
        "Measure accuracy against eps.",
        flag="--curve/--no-curve",
        shown="as far as half of the attacks' cost allows",
    )
    signs: bool | None = option(
        None,
        "Run the attack-failure indicators.",
        flag="--signs/--no-signs",
        shown="as far as a sixth of the attacks' cost allows",
    )
    corruptions: bool | None = option(
        None,
        "Measure accuracy under common corruptions.",
        flag="--corruptions/--no-corruptions",
        shown="as far as half of the attacks' cost allows",
    )
    all_corruptions: bool = option(False, "Measure accuracy under all 15 common corruptions.")
    corruptions_from: Path | None = option(
        None, "Folder with corrupted images, as of CIFAR-10-C: labels.npy, and NAME.npy with five severities."
    )
    random_points: Count | None = option(
        None, "Also measure the share of so many random points of each image's ball that keep the label.", shown="none"
    )
    certify: bool = option(False, "Also prove samples robust, with bounds on the network (small networks only).")
    audit: Share | None = option(
        None,
        "Bound of what AutoAttack could add, as 1% or 0.01: run it on a random sample of the remaining images, and on "
        "all of them if it fools any. 0: no audit.",
        text=True,
        shown="after the fast ensemble, at about its cost",
    )
    until_width: Width | None = option(
        None, "Add images until the 95% intervals are no wider than this, as 2% or 0.02.", text=True
    )
    save_adversarial: bool = option(False, "Save every adversarial image, for `robgib verify`.")
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "Precision of the attacks' gradients: float32 or bfloat16. Adversarial images are always checked in float32.",
    )


@dataclass(frozen=True)
class InformationOptions(_Checked):
    """What to estimate in the layers.

    >>> InformationOptions(codes=40).beta
    1.0
    """

    estimators: Any = option(
        ("imputation",),
        "Estimator of `robgib estimators list`, as NAME[:key=value,…]; repeatable.",
        flag="--estimator",
        shown="imputation",
    )
    layers: Sequence[str] | None = option(
        None, "Layer, by module name or 'logits'; repeatable.", flag="--layer", shown="every block and the logits"
    )
    information_samples: Count | None = option(
        None, "Largest number of images for information estimates.", shown="--samples, 5000 at most"
    )
    features: str | Sequence[str] = option(
        "auto",
        "Parts of the input: patches:G, pca:N, pixels, channels, tokens:G or groups:G; repeatable.",
        shown="patches, or tokens, of two sizes",
    )
    feature_dims: Count = 4
    layer_dims: Count = 8
    codes: Annotated[int, Field(ge=2)] | None = option(
        None, "Number of symbols of each layer's code.", shown="four per class, at least 16"
    )
    sigma: Positive = option(0.3, "Noise of the noise view, as a share of a layer's total standard deviation.")
    unit_groups: NonNegativeInt = option(0, "Groups of units as the features of S(Z;Y) and C(Z;Y); 0: none.")
    beta: NonNegative = option(1.0, "Trade-off of the IB and GIB objectives.")
    pmi: bool = option(False, "Weight samples by 1[ŷ = y]·max(0, pmi(ŷ;y)).")


@dataclass(frozen=True)
class ReportOptions(_Checked):
    """Where to write results and how to show them; nothing here changes a figure."""

    out: Path = option(Path("runs"), "Folder of the run folders.")
    verbose: bool = option(False, "Also print the bits of every layer.")
    as_json: bool = option(False, "Print the result as JSON, for scripts.", flag="--json")
    fail_under: Share | None = option(None, "Exit with 1 if a robust accuracy is lower, as 40% or 0.4.", text=True)
    log: Sequence[str] = option(
        (), "Send parameters, figures, tables and the page to mlflow or tensorboard; repeatable.", shown=""
    )
    fresh: bool = option(False, "Measure again, even if --out holds the finished run.")
    quiet: bool = option(False, "Show no progress bars.")


@dataclass(frozen=True)
class EngineOptions(_Checked):
    """What the work is shared among; nothing here changes a figure."""

    jobs: Count = option(1, "Processes that share the work.", shown="one, or one for each device")
    engine: str = option("local", "local, or ray: a Ray cluster.")
    address: str | None = option(
        None, "Address of the Ray cluster, as HOST:PORT or auto.", shown="a cluster is started on this machine"
    )


@typing.runtime_checkable
class WorkersProtocol(typing.Protocol):
    """What computes calls elsewhere: see :class:`robgib.engines.Workers`, whose import takes long."""

    engine: Any

    def run(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Call the function with each of ``calls``, and yield the results as they are ready."""

    def share_once(self, owner: object, make: Callable[[], Any]) -> Any:
        """Share the value that ``make`` returns, once for each ``owner``."""


@dataclass(frozen=True)
class Context(_Checked):
    """The context of a computation: its seed, its device, and the folders that it reads."""

    seed: Seed = option(0, "Seed of every random number.")
    device: Any = option("auto", "auto, cpu, cuda or cuda:N; several for attacks, as cuda:0,cuda:1.", text=True)
    batch_size: Count | None = option(None, "Images per batch.", shown="chosen automatically")
    data_root: Path | None = option(None, "Folder with the data files.", shown="the cache")
    catalogue: Sequence[Path] = option(
        (), "Further folder of attacks, recipes and plug-ins; repeatable.", shown="", runs_code=True
    )
    parts: Parts = dataclasses.field(default_factory=Parts, compare=False)
    """Storage of finished parts, from which an interrupted computation resumes; by default nothing is stored."""
    progress: Progress | None = dataclasses.field(default=None, compare=False)
    """Called with (task, done, total, note)."""
    workers: WorkersProtocol | None = dataclasses.field(default=None, compare=False)
    """What computes the shards of attacks, a :class:`robgib.engines.Workers`; None is this process."""

    def report(self, task: str, done: int, total: int, note: str = "") -> None:
        """Report progress, if a receiver is set."""
        if self.progress:
            self.progress(task, done, total, note)


def or_default(name: str, value: T | None, default: T) -> T:
    """Return an argument that is an object of options; None becomes the default.

    Raises:
        RobGIBError: it is of another class than the default.

    >>> or_default("context", None, Context(seed=3)).seed
    3
    """
    if value is None:
        return default
    kind = type(default)
    if isinstance(value, kind):
        return value
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    found = repr(value) if isinstance(value, str | int | float) else f"an object of the class {type(value).__name__}"
    first = dataclasses.fields(default)[0].name  # type: ignore[arg-type]
    raise RobGIBError(
        f"{name} must be {article} {kind.__name__}, not {found}; its fields, such as {first}=, are also keywords of "
        "the function."
    )


def gather(what: str, fields: Mapping[str, Any], *defaults: Any) -> tuple[Any, ...]:
    """Return options with some fields replaced; a field is found by its name in any of the objects.

    Args:
        what: the function that takes them, for the message.
        fields: new values by name.
        defaults: one object of each class.

    Raises:
        RobGIBError: no class has a field of that name, or a value is out of its bounds.

    >>> attack, context = gather("evaluate", {"seed": 3, "curve": False}, AttackOptions(), Context())
    >>> attack.curve, context.seed
    (False, 3)
    """
    known = {f.name: i for i, made in enumerate(defaults) for f in dataclasses.fields(made)}
    for name in fields:
        if name not in known:
            raise unknown_name(f"option of {what}:", name, known)
    return tuple(
        dataclasses.replace(made, **{k: v for k, v in fields.items() if known[k] == i})
        for i, made in enumerate(defaults)
    )


def plain_options(made: Any) -> dict[str, Any]:
    """Return options as a configuration file and a run's record store them: numbers, texts and lists by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    # What is not compared is an object that only Python has, such as the storage of parts.
    return {f.name: plain(getattr(made, f.name)) for f in dataclasses.fields(made) if f.compare}
