"""Command-line options from the classes that define them, and the configuration file with the same fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
import yaml

import robgib
from robgib import registry
from robgib.errors import RobGIBError, unknown_name
from robgib.options import Option, option_of, plain_options

__all__ = [
    "at_home",
    "configuration",
    "configuration_reference",
    "configuration_template",
    "configuration_text",
    "configured_models",
    "names_of",
    "section_of",
    "show_all",
    "with_options",
]

_SECTION = "Options"  # what a class of options is called after: ModelOptions are the section `model`


_HOME = re.compile(r"([a-z]+:)?(~(?:/.*)?)", re.DOTALL)


def at_home(value: Any) -> Any:
    """Take ``~`` at the beginning of a path, or of one in a list, for the user's home folder, as a shell does.

    >>> at_home("data/~x"), at_home(["folder:~/x"]) == [f"folder:{os.path.expanduser('~/x')}"]
    ('data/~x', True)
    """
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if isinstance(value, Path | str) and (match := _HOME.fullmatch(str(value))):
        return type(value)(f"{match[1] or ''}{os.path.expanduser(match[2])}")
    return value


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add to a command the options of each parameter whose type is a class of options.

    The command receives objects. Values that the command line omits come from the file of ``--config``, if the command
    has a parameter of that name, and otherwise from the class.

    >>> from robgib.options import Context
    >>> @with_options
    ... def command(*, context: Context): ...
    >>> list(inspect.signature(command).parameters)
    ['seed', 'device', 'batch_size', 'data_root', 'catalogue', 'help_all']
    """
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    classes = {name: hints[name] for name in signature.parameters if _is_options(hints[name])}
    parameters = []
    for name, parameter in signature.parameters.items():
        if name in classes:
            parameters += [_parameter(f, kind) for kind in [classes[name]] for f in _offered(kind)]
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
    parameters.append(_HELP_ALL)

    @functools.wraps(function)
    def call(**given: Any) -> Any:
        given.pop("help_all", None)
        configured = configuration(given["config"], classes.values()) if given.get("config") else {}
        made = {}
        for name, kind in classes.items():
            own = {f.name: given.pop(f.name) for f in _offered(kind)}
            _refuse_code(kind, configured.get(kind, {}), bool(given.get("allow_code") or own.get("allow_code")))
            stated = {key: value for key, value in own.items() if value is not None}
            made[name] = kind(**{**configured.get(kind, {}), **stated})
        return function(**given, **made)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    del call.__wrapped__  # else the signature of the function shows through
    return call


def show_all(command: Any) -> None:
    """Let the help of a command, or of all commands of a group, list every option."""
    for parameter in command.params:
        parameter.hidden = False
    for inner in getattr(command, "commands", {}).values():
        show_all(inner)


def _print_all(context: typer.Context, given: bool) -> None:
    if given:
        show_all(context.command)
        typer.echo(context.get_help())
        raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--help-all", help="Show every option.", is_eager=True, callback=_print_all)
    ],
)


def names_of(kind: Literal["attacks", "estimators", "zoo"]) -> Callable[[str], list[str]]:
    """Return what completes a name of a catalogue for the shell.

    >>> names_of("zoo")("digits-v")
    ['digits-vit']
    """

    def complete(incomplete: str) -> list[str]:
        # the names of estimators are in their classes: the import takes seconds, the files of the others do not
        names = robgib.list_estimators() if kind == "estimators" else registry.yaml_files(kind, ())
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def _words(*words: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


_RARE = {
    "beta", "bounds", "catalogue", "class_subset", "codes", "corruptions", "crop", "curve", "data_bounds",
    "information_samples", "interpolation", "log", "mean", "pmi", "precision", "resize", "sigma", "signs", "std",
    "unit_groups", "weights_key",
}  # fmt: skip
"""Options that ``--help-all`` lists and ``--help`` does not."""
_NAMES = {
    "attacks": names_of("attacks"),
    "estimators": names_of("estimators"),
    "norm": _words("linf", "l2", "l1", "l0"),
    "interpolation": _words("nearest", "bilinear", "bicubic", "lanczos"),
    "precision": _words("float32", "bfloat16"),
    "log": _words("mlflow", "tensorboard"),
}


def _is_options(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) and any(option_of(f) for f in dataclasses.fields(kind))


def _offered(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(kind) if option_of(f)]


def _is_stated(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is something that can be written, not an object that only Python has."""
    return option_of(field) is not None or (field.compare and field.default is not None)


def _parameter(field: dataclasses.Field[Any], kind: type[Any]) -> inspect.Parameter:
    """An option as Typer reads it; its default is None, which marks an omitted option."""
    how = option_of(field)
    assert how is not None
    annotation, bounds = _shape(typing.get_type_hints(kind, include_extras=True)[field.name], field, how)
    flag = how.flag or f"--{field.name.replace('_', '-')}"
    if annotation is bool and "/" not in flag:
        flag = f"{flag}/--no-{flag[2:]}" if field.default is True else flag
    panel = f"{section_of(kind).capitalize()} options"
    info = typer.Option(
        flag,
        help=how.help,
        show_default=_shown(field, how),
        rich_help_panel=panel,
        hidden=field.name in _RARE,
        autocompletion=_NAMES.get(field.name),
        **bounds,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[annotation], info],  # noqa: UP045
    )


def _shown(field: dataclasses.Field[Any], how: Option) -> str | bool:
    if how.shown is not None:
        return how.shown or False
    if field.default is None or field.default is False or field.default is True:
        return False
    return str(field.default)


def _shape(hint: Any, field: dataclasses.Field[Any], how: Option) -> tuple[Any, dict[str, Any]]:
    """The type that Typer parses, and a number's bounds."""
    if how.text:
        return str, {}
    bounds: dict[str, Any] = {}
    while typing.get_origin(hint) in (Annotated, typing.Union, types.UnionType):
        if typing.get_origin(hint) is Annotated:
            hint, *extra = typing.get_args(hint)
            for limit in (m for e in extra for m in getattr(e, "metadata", [e])):
                bounds |= {to: getattr(limit, of) for of, to in (("ge", "min"), ("le", "max")) if hasattr(limit, of)}
        else:
            kinds = [k for k in typing.get_args(hint) if k is not type(None)]
            hint = next((k for k in kinds if typing.get_origin(k) is not None), kinds[0])
    if hint is Any or typing.get_origin(hint) is not None:  # several of them
        inner = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal:
            return str, {}
        return list[Path] if inner and inner[0] is Path else list[str], {}
    return hint, bounds if hint in (int, float) else {}


def section_of(kind: type[Any]) -> str:
    """What a configuration file calls a class of options.

    >>> from robgib.options import ModelOptions
    >>> section_of(ModelOptions)
    'model'
    """
    return kind.__name__.removesuffix(_SECTION).lower()


def configuration(
    path: Path, kinds: Sequence[type[Any]] | typing.ValuesView[type[Any]]
) -> dict[type[Any], dict[str, Any]]:
    """Read a configuration file: one section per class of options, with its fields.

    Raises:
        RobGIBError: there is no such file, section or field, or a field that only the command line may give.
    """
    if path.is_dir():
        raise RobGIBError(f"{str(path)!r} is a folder; give the configuration file in it, such as run.yaml.")
    if not path.exists():
        raise RobGIBError(f"configuration file {str(path)!r} does not exist.")
    content = registry.read_yaml(path)
    sections = {section_of(kind): kind for kind in kinds}
    values: dict[type[Any], dict[str, Any]] = {}
    for name, fields in content.items():
        if name == "models":
            continue
        if name not in sections:
            raise unknown_name(f"section of {path}:", str(name), [*sections, "models"])
        if fields is None:  # all of its options are commented out
            continue
        if not isinstance(fields, Mapping):
            raise RobGIBError(f"{path}: section {name!r} must map options to values.")
        known = {f.name: option_of(f) for f in dataclasses.fields(sections[name]) if _is_stated(f)}
        for key in fields:
            if key not in known:
                raise unknown_name(f"option in section {name!r} of {path}:", str(key), known)
            how = known[key]
            if how is not None and not how.from_file and fields[key]:
                raise RobGIBError(f"{path}: {key} may only be given on the command line; remove it from the file.")
        values[sections[name]] = {key: at_home(value) for key, value in fields.items()}
    return values


def configured_models(path: Path | None) -> list[str]:
    """Return the models that a configuration file names; without a file none.

    Raises:
        RobGIBError: they are not a list of names.
    """
    names = registry.read_yaml(path).get("models", []) if path is not None else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RobGIBError(f"{path}: models must be a list of names.")
    return [at_home(name) for name in names]


def _refuse_code(kind: type[Any], fields: Mapping[str, Any], allowed: bool) -> None:
    """Raise where a configuration file names code to run and the command line does not allow that."""
    for field in _offered(kind):
        how = option_of(field)
        if how is not None and how.runs_code and fields.get(field.name) and not allowed:
            raise RobGIBError(
                f"{field.name} in the configuration file can name code to run; give --allow-code if you trust whoever "
                "made the file."
            )


def configuration_text(models: Sequence[str], *made: Any) -> str:
    """Return the configuration file that repeats a command: the fields that differ from their defaults.

    >>> from robgib.options import AttackOptions
    >>> print(configuration_text(["digits-cnn"], AttackOptions(samples=10)), end="")
    models:
    - digits-cnn
    attack:
      samples: 10
    """
    content: dict[str, Any] = {"models": list(models)}
    for one in made:
        default = plain_options(type(one)())
        changed = {key: value for key, value in plain_options(one).items() if value != default[key]}
        forbidden = {f.name for f in _offered(type(one)) if not (option_of(f) or Option("")).from_file}
        kept = {key: value for key, value in changed.items() if key not in forbidden}
        if kept:
            content[section_of(type(one))] = kept
    return yaml.safe_dump(content, sort_keys=False)


def configuration_template(models: Sequence[str], kinds: Sequence[type[Any]]) -> str:
    """Return a configuration file with every option that a file may set, commented out, at its default.

    >>> from robgib.options import Context
    >>> print(*configuration_template(["digits-cnn"], [Context]).splitlines()[4:8], sep="\\n")
    # The context of a computation: its seed, its device, and the folders that it reads.
    context:
      # Seed of every random number.
      # seed: 0
    """
    lines = [
        "# Configuration of `robgib evaluate --config FILE`. Remove `# ` before an option to set it; the command line",
        "# overrides the file. Values are the defaults; null leaves the choice to RobGIB.",
        f"models: {yaml.safe_dump(list(models), default_flow_style=True).strip()}",
    ]
    for kind in kinds:
        lines += ["", f"# {(kind.__doc__ or '').strip().splitlines()[0]}", f"{section_of(kind)}:"]
        default = plain_options(kind())
        for field in _offered(kind):
            how = option_of(field)
            if how is None or not how.from_file:
                continue
            value = yaml.safe_dump(default[field.name], default_flow_style=True).partition("\n")[0]
            needs = " Needs --allow-code." if how.runs_code else ""
            lines += [f"  # {how.help.replace('[red]', '')}{needs}", f"  # {field.name}: {value}"]
    return "\n".join(lines) + "\n"


def configuration_reference(kinds: Sequence[type[Any]]) -> str:
    """The reference of the configuration file in Markdown: a table for each class of options.

    >>> from robgib.options import Context
    >>> print(configuration_reference([Context]).splitlines()[0])
    ## `context`
    """
    tables = []
    for kind in kinds:
        purpose = (kind.__doc__ or "").strip().splitlines()[0]
        rows = [f"## `{section_of(kind)}`", "", purpose, "", "| field | command line | default | meaning |"]
        rows.append("| --- | --- | --- | --- |")
        for field in dataclasses.fields(kind):
            how = option_of(field)
            if how is None:
                continue
            flag = (how.flag or f"--{field.name.replace('_', '-')}").partition("/")[0]
            if field.default is True:
                flag = f"--no-{flag[2:]}"
            default = how.shown or _text_of(plain_options(kind())[field.name])
            limit = "" if how.from_file else " Command line only."
            limit += " In a file only with `--allow-code`." if how.runs_code else ""
            meaning = how.help.replace("[red]", "").replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{flag}` | {default} | {meaning}{limit} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables) + "\n"


def _text_of(value: Any) -> str:
    """A default as a person reads it."""
    if value in (None, [], ()):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
