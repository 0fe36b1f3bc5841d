"""The public names of the package: a change of one is announced, by a change of ``public_api.txt`` beside this file.

python -m tests.test_public_api    (writes the file; say in CHANGELOG.md what changed)
"""

import dataclasses
import inspect
import re
from pathlib import Path
from types import ModuleType

import robgib

KEPT = Path(__file__).with_name("public_api.txt")
PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def parameters(function):
    """Names of the parameters; ``=`` marks those with a default, ``*`` the beginning of those by name."""
    words, named = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            words.append("*")
        named = named or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        words.append(f"{stars}{name}{'' if parameter.default is parameter.empty else '='}")
    return f"({', '.join(words)})"


def lines(name, thing):
    """A line for a function; for a class a line for it, its fields and each public method."""
    if not inspect.isclass(thing):
        return [name + parameters(thing)]
    if issubclass(thing, BaseException):
        return [f"{name}({', '.join(base.__name__ for base in thing.__bases__)})"]
    found = [name + (parameters(thing) if dataclasses.is_dataclass(thing) else "")]
    for method, made in sorted(vars(thing).items()):
        if method.startswith("_") and method != "__call__":
            continue
        inner = made.__func__ if isinstance(made, staticmethod | classmethod) else made
        if inspect.isfunction(inner):
            found.append(f"{name}.{method}{parameters(inner)}")
        elif isinstance(made, property):
            found.append(f"{name}.{method}")
    return found


def public_api():
    """The public names that are no modules, as lines of text."""
    things = {name: getattr(robgib, name) for name in sorted(robgib.__all__)}
    return [line for name, thing in things.items() if not isinstance(thing, ModuleType) for line in lines(name, thing)]


def test_the_public_api_changes_only_with_an_announcement():
    kept = KEPT.read_text(encoding="utf-8").splitlines()
    assert public_api() == kept, "announce the change in CHANGELOG.md and run `python -m tests.test_public_api`"


def test_a_change_is_noticed():
    def before(model, *, seed=0): ...
    def after(model, *, seed): ...

    assert parameters(before) == "(model, *, seed=)"
    assert parameters(before) != parameters(after)


def test_the_reference_has_every_public_name():
    listed = set(re.findall(r"^::: robgib\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.M))
    assert listed == {re.match(r"\w+", line)[0] for line in public_api()}


if __name__ == "__main__":
    KEPT.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
