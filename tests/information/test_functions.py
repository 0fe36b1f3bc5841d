"""Functions of information, training, validation and the zoo stay short and take few parameters."""

import ast
from pathlib import Path

import robgib

ROOMS = ("information", "training", "validation", "zoo")
LONGEST, MOST_PARAMETERS = 60, 10
EXEMPT = {"masked_network.train"}  # 11 parameters: its options are not one object yet


def functions():
    for room in ROOMS:
        for path in sorted((Path(robgib.__file__).parent / room).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    yield f"{path.stem}.{node.name}", node


def lines_of(node):
    """Lines of a function without its docstring."""
    first = node.body[0]
    doc = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
    return node.end_lineno - node.lineno + 1 - doc


def test_functions_are_short_and_take_few_parameters():
    too_long = [name for name, node in functions() if lines_of(node) > LONGEST]
    counts = {name: len(node.args.args + node.args.kwonlyargs) for name, node in functions() if name not in EXEMPT}
    assert not too_long
    assert not [name for name, count in counts.items() if count > MOST_PARAMETERS]
