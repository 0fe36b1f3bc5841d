"""Count the small changes of the formulas that no test notices, by file, after ``mutmut run``.

    python benchmarks/mutants.py [FOLDER]

``make mutants`` does both. Prints Markdown, and the name of each change that survived; ``mutmut show NAME`` shows one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_SURVIVED, _NO_TEST, _SKIPPED = 0, 33, 34  # exit codes that mutmut keeps


def counts(codes: list[int | None]) -> tuple[int, int, int, int]:
    """How many changes were tried, and of them noticed, survived, and reached by no test."""
    tried = [c for c in codes if c is not None and c != _SKIPPED]
    survived, lone = tried.count(_SURVIVED), tried.count(_NO_TEST)
    return len(tried), len(tried) - survived - lone, survived, lone


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "mutants")
    by_file = {
        str(path.relative_to(folder).with_suffix("")): json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        for path in sorted(folder.rglob("*.py.meta"))
    }
    print("| file | changes | noticed | survived | not reached | unnoticed |\n| --- | --: | --: | --: | --: | --: |")
    rows = {name: list(codes.values()) for name, codes in by_file.items()}
    for name, codes in {**rows, "all": [c for some in rows.values() for c in some]}.items():
        tried, noticed, survived, lone = counts(codes)
        if tried:
            print(f"| {name} | {tried} | {noticed} | {survived} | {lone} | {(survived + lone) / tried:.1%} |")
    print()
    for codes in by_file.values():
        print("".join(f"{key}\n" for key, code in codes.items() if code in (_SURVIVED, _NO_TEST)), end="")


if __name__ == "__main__":
    main()
