"""Change the formulas, one number, sign, operator or comparison at a time, and count the changes that no test notices.

    python benchmarks/mutants.py                                   # every file
    python benchmarks/mutants.py robgib/attacks/apgd.py            # one file
    python benchmarks/mutants.py robgib/attacks/apgd.py:172,217    # the changes in two of its lines
    python benchmarks/mutants.py --sample 50 --seed 1 --jobs 4     # at most 50 changes a file, four at a time

A number n becomes n + 1, or 1.25 n if it has a fraction; + and −, × and ÷, < and ≤, = and ≠, "and" and "or" change
places; a sign or a "not" is dropped. Messages, annotations, decorators and texts stay.

The tests of a file (``TESTS``) first run once, to find which lines each reaches, and how long it takes; a test above
``--seconds`` is not counted. Then each change has a process of its own, forked from one in which the tests are
collected: the changed function replaces its original, and the tests that reach its line run until the first failure. A
change that no such test notices survives; so does one in a line that no test reaches. Prints Markdown, and the changes
that survive; ``mutants.md`` names them, with the reason why each is harmless.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS: dict[str, tuple[str, ...]] = {
    "robgib/statistics.py": ("tests/test_statistics.py", "tests/test_exact_statistics.py"),
    "robgib/attacks/apgd.py": ("tests/attacks/test_exact.py",),
    "robgib/attacks/objective.py": ("tests/attacks/test_exact.py",),
    "robgib/attacks/square.py": ("tests/attacks/test_exact.py",),
    "robgib/attacks/threat_model.py": ("tests/attacks/test_exact.py", "tests/attacks/test_threat_model.py"),
    **dict.fromkeys(
        [f"robgib/studies/{name}.py" for name in ("agreement", "claims", "ladder", "strata")],
        tuple(
            f"tests/studies/test_{name}.py"
            for name in ("exact_claims", "exact_claim_parts", "exact_ladder", "exact_strata")
        ),
    ),
    "robgib/information/binned.py": ("tests/information/test_exact_counts.py", "tests/information/test_binned.py"),
    "robgib/information/decomposition.py": (
        "tests/information/test_exact_decomposition.py",
        "tests/information/test_decomposition.py",
        "tests/information/test_exact_measures.py",
    ),
    "robgib/information/donors.py": ("tests/information/test_exact_donors.py", "tests/information/test_donors.py"),
    "robgib/information/imputation.py": (
        "tests/information/test_exact_imputation.py",
        "tests/information/test_imputation.py",
        "tests/information/test_learning_costs.py",
    ),
    "robgib/information/views.py": (
        "tests/information/test_exact_views.py",
        "tests/information/test_exact_measures.py",
        "tests/information/test_views.py",
    ),
    **{
        f"robgib/information/{name}.py": ("tests/information/test_exact_parts.py", f"tests/information/{test}.py")
        for name, test in {
            "exact": "test_estimators",
            "loss_comparison": "test_loss_comparison",
            "preprocessing": "test_exact_neighbours",
            "stacking": "test_learning_costs",
        }.items()
    },
    "robgib/information/pieces.py": (
        "tests/information/test_exact_pieces.py",
        "tests/information/test_learning_costs.py",
    ),
    "robgib/information/readings.py": (
        "tests/information/test_exact_readings.py",
        "tests/information/test_readings.py",
    ),
    "robgib/information/discrete.py": ("tests/information/test_exact_measures.py",),
    "robgib/information/flow.py": ("tests/information/test_exact_flow.py", "tests/information/test_flow.py"),
    "robgib/information/gaussian.py": (
        "tests/information/test_exact_gaussian.py",
        "tests/information/test_exact_measures.py",
        "tests/information/test_gaussian.py",
    ),
    **dict.fromkeys(
        [f"robgib/information/{name}.py" for name in ("infonce", "probe")],
        ("tests/information/test_exact_learned.py", "tests/information/test_exact_masked.py"),
    ),
    "robgib/information/ksg.py": ("tests/information/test_exact_neighbours.py", "tests/information/test_ksg.py"),
    "robgib/information/masked_network.py": (
        "tests/information/test_exact_masked.py",
        "tests/information/test_probe.py",
    ),
    "robgib/information/measures.py": ("tests/information/test_exact_measures.py",),
    "robgib/information/renyi.py": ("tests/information/test_exact_counts.py",),
}
_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_KEPT = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)
_HARMLESS_KEYWORDS = ("strict",)  # of zip: it only checks
_LONE = -1000  # in place of an exit code: no test reaches the line
_ARGUMENTS = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no")


@dataclass(frozen=True)
class Change:
    """One change: where it is, what it says, and how to make it (``owner.field``, or its item ``index``, = ``new``)."""

    line: int
    lines: tuple[int, int]
    function: str
    text: str
    owner: ast.AST
    field: str
    index: int | None
    new: Any

    def compiled(self, tree: ast.Module, path: str) -> CodeType:
        """Return the code of the changed module; the tree itself is as before."""
        old = self._put(self.new)
        try:
            return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        finally:
            self._put(old)

    def _put(self, new: Any) -> Any:
        if self.index is None:
            old = getattr(self.owner, self.field)
            setattr(self.owner, self.field, new)
            return old
        items = getattr(self.owner, self.field)
        old, items[self.index] = items[self.index], new
        return old


def changes(tree: ast.Module) -> list[Change]:
    """Return every change of a module, in the order of its lines."""
    return sorted(_within(tree, (0, 0), ""), key=lambda c: c.line)


def _within(node: ast.AST, lines: tuple[int, int], function: str) -> Iterator[Change]:
    """Changes below ``node``, which is in the statement ``lines`` of ``function`` (empty: run when imported)."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params") or _is_docstring(node, field):
            continue
        body = field == "body" and isinstance(node, ast.FunctionDef)
        scope = f"{function}.{node.name}".lstrip(".") if body else function  # defaults belong to what is around
        items = value if isinstance(value, list) else [value]
        for index, child in enumerate(items):
            if not isinstance(child, ast.AST) or isinstance(child, _KEPT):
                continue
            if isinstance(child, ast.keyword) and child.arg in _HARMLESS_KEYWORDS:
                continue
            own = _extent(child) if isinstance(child, ast.stmt) else lines
            if new := _other(child):
                where = (node, field, index if isinstance(value, list) else None)
                line = getattr(child, "lineno", getattr(node, "lineno", own[0]))
                yield Change(line, own, scope, _words(node, child, new), *where, new)
            yield from _within(child, own, scope)


def _is_docstring(node: ast.AST, field: str) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and field == "value"


def _extent(statement: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, without the statements in it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else statement.end_lineno or statement.lineno
    return statement.lineno, max(statement.lineno, last)


def _other(node: ast.AST) -> ast.AST | None:
    """What takes the place of a number, sign, operator or comparison; None for anything else."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            return ast.copy_location(ast.Constant(not node.value), node)
        if isinstance(node.value, int):
            return ast.copy_location(ast.Constant(node.value + 1), node)
        if isinstance(node.value, float):
            return ast.copy_location(ast.Constant(node.value * 1.25 if node.value else 1.0), node)
        return None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        return node.operand
    return _SWAPPED[type(node)]() if type(node) in _SWAPPED else None


def _words(parent: ast.AST, old: ast.AST, new: ast.AST) -> str:
    if isinstance(old, ast.expr):
        return f"`{ast.unparse(old)}` → `{ast.unparse(new)}`"
    return f"`{_sign(new)}` for `{_sign(old)}` in `{ast.unparse(parent)}`"


def _sign(operator: ast.AST) -> str:
    one, two = ast.Name("a"), ast.Name("b")
    whole: ast.expr
    if isinstance(operator, ast.boolop):
        whole = ast.BoolOp(operator, [one, two])
    elif isinstance(operator, ast.cmpop):
        whole = ast.Compare(one, [operator], [two])
    else:
        whole = ast.BinOp(one, operator, two)  # type: ignore[arg-type]
    return ast.unparse(whole)[2:-2]


class _Session:
    """A pytest plug-in that runs the collected tests once, and then again for each change of a function."""

    def __init__(self, path: str, tree: ast.Module, chosen: Sequence[Change], options: argparse.Namespace) -> None:
        self.path, self.tree, self.chosen, self.options = path, tree, chosen, options
        self.reached: dict[str, tuple[float, list[int]]] = {}
        self.codes: dict[int, int] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.reached = _answer(lambda: _measured(session, self.path))
        inside = [n for n, change in enumerate(self.chosen) if change.function]
        functions = _functions_of(self.path)
        items = {item.nodeid: item for item in session.items}

        def work(change: Change, tests: Sequence[str]) -> int:
            _install(change.compiled(self.tree, self.path), functions)
            return _failures(session, [items[t] for t in tests])

        self.codes = _each(inside, self.chosen, self.reached, work, self.options)
        return True


def _functions_of(path: str) -> list[FunctionType]:
    """Functions of an imported file; the tests freeze their objects, which the collector then does not list."""
    gc.unfreeze()
    found = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__code__.co_filename == path]
    gc.freeze()
    return found


def _failures(session: pytest.Session, items: Sequence[pytest.Item]) -> int:
    """Run tests until the first failure, and return the number of failures."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            break
    return session.testsfailed


def _measured(session: pytest.Session, path: str) -> dict[str, tuple[float, list[int]]]:
    """The CPU seconds of each test and the lines of ``path`` that it reaches; nothing if a test fails."""
    tests = {}
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        lines: set[int] = set()

        def inside(frame: FrameType, event: str, _: Any, lines: set[int] = lines) -> Any:
            lines.add(frame.f_lineno)
            return inside

        def enter(frame: FrameType, event: str, _: Any, inside: Any = inside) -> Any:
            return inside(frame, event, _) if frame.f_code.co_filename == path else None

        start = time.process_time()
        sys.settrace(enter)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        sys.settrace(None)
        tests[item.nodeid] = (time.process_time() - start, sorted(lines))
        if session.testsfailed:
            return {}
    return tests


def _install(code: CodeType, functions: Sequence[FunctionType]) -> None:
    """Give each function its code in a changed module (functions in functions come with those around them)."""
    codes, waiting = {}, [code]
    while waiting:
        one = waiting.pop()
        codes[one.co_name, one.co_firstlineno] = one
        waiting += [c for c in one.co_consts if isinstance(c, CodeType)]
    for function in functions:
        function.__code__ = codes[function.__code__.co_name, function.__code__.co_firstlineno]


class _Changed(importlib.machinery.SourceFileLoader):
    """Load a module, from the code of a change."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, loader: _Changed) -> None:
        self.loader = loader

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.path, loader=self.loader)


def _fork(work: Callable[[], int], limit: float) -> int:
    """Run ``work`` in a forked process with ``limit`` CPU seconds; return its number. Its exit code is the result."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 1))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        code = int(work())
    finally:
        os._exit(code)


def _answer(work: Callable[[], Any]) -> Any:
    """Return what ``work`` does in a forked process, by JSON; None if it fails."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        path = Path(file.name)
        os.waitpid(_fork(lambda: path.write_text(json.dumps(work()), encoding="utf-8") and 0, 3600), 0)
        return json.loads(path.read_text(encoding="utf-8") or "null")


def _each(
    numbers: Sequence[int],
    chosen: Sequence[Change],
    reached: dict[str, tuple[float, list[int]]],
    work: Callable[[Change, Sequence[str]], int],
    options: argparse.Namespace,
) -> dict[int, int]:
    """Run the tests that reach each change in a process of its own; return the exit codes, or ``_LONE``."""
    result: dict[int, int] = {}
    running: dict[int, int] = {}

    def finish() -> None:
        pid, status = os.wait()
        result[running.pop(pid)] = os.waitstatus_to_exitcode(status)

    for number in numbers:
        change = chosen[number]
        first, last = change.lines
        cost = {t: seconds for t, (seconds, lines) in reached.items() if seconds <= options.seconds
                and (not change.function or any(first <= n <= last for n in lines))}  # fmt: skip
        if not cost:
            result[number] = _LONE
            continue
        if len(running) == options.jobs:
            finish()
        tests = sorted(cost, key=lambda t: cost[t])
        running[_fork(lambda c=change, t=tests: work(c, t), 3 + 3 * sum(cost.values()))] = number
    while running:
        finish()
    return result


def judged(
    path: str, tests: Sequence[str], tree: ast.Module, chosen: Sequence[Change], options: argparse.Namespace
) -> dict[int, int]:
    """Return the exit code of the tests for each change, by its place: 0 if it survives.

    Raises:
        SystemExit: a test fails without any change.
    """
    name = Path(path).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")

    def functions() -> list[Any]:
        session = _Session(path, tree, chosen, options)
        pytest.main([*_ARGUMENTS, *tests], [session])
        return [session.reached, session.codes]

    def module(change: Change, own: Sequence[str]) -> int:
        sys.meta_path.insert(0, _Finder(_Changed(name, path, change.compiled(tree, path))))
        return int(pytest.main([*_ARGUMENTS, "-x", *own]))

    reached, codes = _answer(functions) or ({}, {})
    if not reached:
        raise SystemExit(f"A test of {path} fails without any change: {' '.join(tests)}")
    outside = [n for n, change in enumerate(chosen) if not change.function]
    return {**{int(n): code for n, code in codes.items()}, **_each(outside, chosen, reached, module, options)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files, each with :LINE,LINE for some of its lines (default: all)")
    parser.add_argument("--sample", type=int, help="changes a file, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds above which a test is not counted")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    return parser.parse_args()


def _chosen(name: str, lines: str, tree: ast.Module, options: argparse.Namespace) -> list[Change]:
    every = changes(tree)
    if lines:
        return [c for c in every if str(c.line) in lines.split(",")]
    if options.sample is None or options.sample >= len(every):
        return every
    return sorted(random.Random(f"{options.seed} {name}").sample(every, options.sample), key=lambda c: c.line)


def main() -> None:
    options = _options()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    importlib.import_module("tests.fixtures")  # the libraries; the project's own modules are imported after the fork
    for name in [m for m in sys.modules if m.partition(".")[0] in ("robgib", "tests")]:
        del sys.modules[name]
    print("| file | changes | tried | survived | not reached | unnoticed |\n| --- | --: | --: | --: | --: | --: |")
    left = []
    for given in options.files or TESTS:
        name, _, lines = given.partition(":")
        path = str(ROOT / name)
        tree = ast.parse(Path(path).read_text(encoding="utf-8"), path)
        chosen = _chosen(name, lines, tree, options)
        codes = judged(path, TESTS[name], tree, chosen, options)
        survived, lone = (list(codes.values()).count(code) for code in (0, _LONE))
        share = (survived + lone) / max(1, len(chosen))
        print(f"| {name} | {len(changes(tree))} | {len(chosen)} | {survived} | {lone} | {share:.1%} |", flush=True)
        unnoticed = [c for n, c in enumerate(chosen) if codes[n] in (0, _LONE)]
        left += [f"{name}:{c.line} {c.function or '(module)'}: {c.text}" for c in unnoticed]
    print("", *left, sep="\n")


if __name__ == "__main__":
    main()
