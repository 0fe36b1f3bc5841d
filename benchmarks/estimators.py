"""One mutual information, all interaction informations in one pass, and the naive 2n+1 fits: time and memory.

    python benchmarks/estimators.py [--estimators gaussian,binned] [--features 4,16,32,64] [--samples 1000,10000]

Each measurement runs in a process of its own, whose peak resident memory beyond its start is reported. The naive
form fits every subset by itself: where that would take longer than --limit, three subsets of each kind are measured
and the rest is reckoned from their mean (marked ~). Features have 4 dimensions; the target is a noisy sum of them, a
class code for estimators of classes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np

KINDS = ("mi", "pass", "naive")


def problem(samples: int, n: int, classes: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Features (samples, 4) and a target: (samples, 4) real, or codes of 4 classes."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((samples, 4)) for _ in range(n)]
    target = sum(x) / np.sqrt(n) + rng.standard_normal((samples, 4))  # type: ignore[operator]
    return x, (target[:, 0] > 0) + 2 * (target[:, 1] > 0) if classes else target


def measure(
    queue: multiprocessing.Queue, name: str, kind: str, samples: int, n: int, classes: bool, limit: float
) -> None:
    """Put (seconds, MiB, whether reckoned) into the queue."""
    from robgib.information import make_estimator

    x, target = problem(samples, n, classes)

    def estimate(features: list[np.ndarray]) -> float:
        began = time.perf_counter()
        make_estimator(name).estimate(features, target)
        return time.perf_counter() - began

    small, few = problem(200, 2, classes)
    make_estimator(name).estimate(small, few)  # imports and first calls are not what is timed
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reckoned = False
    if kind == "mi":
        seconds = estimate([np.hstack(x)])
    elif kind == "pass":
        seconds = estimate(x)
    else:
        rests = [[np.hstack([v for j, v in enumerate(x) if j != i])] for i in range(n)]
        singles = [[v] for v in x]
        seconds = estimate([np.hstack(x)])
        for group in (rests, singles):
            first = [estimate(f) for f in group[:3]]
            left = len(group) - len(first)
            if left * np.mean(first) > limit:
                seconds += sum(first) + left * float(np.mean(first))
                reckoned = True
            else:
                seconds += sum(first) + sum(estimate(f) for f in group[3:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((seconds, (peak - base) / 1024, reckoned))


def run(
    name: str, kind: str, samples: int, n: int, classes: bool, limit: float, patience: float
) -> tuple[float, float, bool] | None:
    """Measure in a fresh process; None when it takes longer than ``patience`` seconds."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(queue, name, kind, samples, n, classes, limit))
    process.start()
    try:
        return queue.get(timeout=patience)
    except Exception:
        return None
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--estimators", default="gaussian,binned,renyi,probe")
    parser.add_argument("--features", default="4,16,32,64")
    parser.add_argument("--samples", default="1000,10000,50000")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of naive fits before the rest is reckoned")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds after which a measurement is given up")
    options = parser.parse_args()
    heads = [
        "estimator",
        "n",
        "samples",
        "one MI s",
        "one pass s",
        "naive s",
        "pass / MI",
        "naive / pass",
        "MI MiB",
        "pass MiB",
    ]
    print(f"| {' | '.join(heads)} |\n| --- |{' --: |' * (len(heads) - 1)}")
    for name in options.estimators.split(","):
        for n in map(int, options.features.split(",")):
            for samples in map(int, options.samples.split(",")):
                classes = name in ("probe",)
                measured = [run(name, kind, samples, n, classes, options.limit, options.patience) for kind in KINDS]
                mi, one, naive = measured
                cells = ["–" if f is None else f"{'~' if f[2] else ''}{f[0]:.2f}" for f in measured]
                ratios = ["–" if a is None or b is None else f"{a[0] / b[0]:.1f}" for a, b in ((one, mi), (naive, one))]
                memory = ["–" if f is None else f"{f[1]:.0f}" for f in (mi, one)]
                print(f"| {' | '.join([name, str(n), str(samples), *cells, *ratios, *memory])} |", flush=True)


if __name__ == "__main__":
    main()
