"""The counter of mutants: which changes it makes, and that they take effect."""

import ast
import gc
from pathlib import Path

from benchmarks import mutants

ROOT = Path(__file__).parent.parent
SOURCE = '''"""A text with 1 number."""
LIMIT = 0.5


def score(x, scale=2):
    """Return 3 things."""
    if not x <= LIMIT or x == 1:
        raise ValueError(f"{x} is above {LIMIT + 1}")
    return -x * scale
'''


def test_every_number_sign_operator_and_comparison_changes_once():
    found = [(c.line, c.function, c.text) for c in mutants.changes(ast.parse(SOURCE))]
    assert sorted(found) == sorted(
        [
            (2, "", "`0.5` → `0.625`"),
            (5, "", "`2` → `3`"),
            (7, "score", "`and` for `or` in `not x <= LIMIT or x == 1`"),
            (7, "score", "`not x <= LIMIT` → `x <= LIMIT`"),
            (7, "score", "`<` for `<=` in `x <= LIMIT`"),
            (7, "score", "`!=` for `==` in `x == 1`"),
            (7, "score", "`1` → `2`"),
            (9, "score", "`-x` → `x`"),
            (9, "score", "`/` for `*` in `-x * scale`"),
        ]
    )


def test_a_change_takes_effect_and_the_module_stays_as_it_is():
    tree, before, path = ast.parse(SOURCE), {}, "made.py"
    exec(compile(tree, path, "exec"), before)
    score = before["score"]
    (sign,) = (c for c in mutants.changes(tree) if c.text == "`-x` → `x`")
    (default,) = (c for c in mutants.changes(tree) if c.text == "`2` → `3`")
    after = {}
    exec(default.compiled(tree, path), after)
    assert after["score"](0.25) == -0.75
    mutants._install(sign.compiled(tree, path), [score])
    assert score(0.25) == 0.5
    mutants._install(compile(tree, path, "exec"), [score])
    assert score(0.25) == -0.5


def test_functions_are_found_when_what_is_imported_is_frozen():
    """The tests freeze it after their collection: no change took effect, and every one seemed to survive."""
    made = {}
    exec(compile(SOURCE, "made frozen.py", "exec"), made)
    gc.freeze()
    assert mutants._functions_of("made frozen.py") == [made["score"]]


def test_every_file_has_tests():
    for file, tests in mutants.TESTS.items():
        assert [(ROOT / name).is_file() for name in (file, *tests)] == [True] * (1 + len(tests)), file
