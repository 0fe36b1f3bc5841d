"""Texts as sequences of token vectors in [0, 1], which every attack on images accepts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from robgib.errors import RobGIBError

__all__ = [
    "as_vectors",
    "embed_tokens",
    "read_texts",
    "tokenise",
]

LENGTH, WIDTH, VOCABULARY, WINDOW = 64, 32, 10_000, 4
_MIDDLE = np.float32(0.5)  # the vector of padding and of unknown tokens
Array = npt.NDArray[Any]


def tokenise(text: str) -> list[str]:
    """Lower-case words, and the marks between them, the first :data:`LENGTH`."""
    return re.findall(r"\w+|[^\w\s]", text.lower())[:LENGTH]


def read_texts(folder: Path) -> tuple[list[list[str]], Array, tuple[str, ...]]:
    """Tokens of every text file in folders named for their classes, their labels, and the classes.

    Raises:
        RobGIBError: there are no such folders, or no files in one.
    """
    from sklearn.datasets import load_files

    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    classes = [p for p in inside if p.is_dir() and not p.name.startswith(".")]
    if not classes:
        raise RobGIBError(f"{folder} holds no folders of texts named for their classes.")
    for one in classes:
        if not any(p.is_file() for p in one.iterdir()):
            raise RobGIBError(f"{one} holds no texts.")
        if strange := next((p for p in sorted(one.iterdir()) if not p.is_file()), None):  # a pipe would be waited for
            raise RobGIBError(f"{strange} is not a regular file; remove it.")
    try:
        names = [p.name for p in classes]
        texts = load_files(str(folder), categories=names, encoding="utf-8", decode_error="replace", shuffle=False)
    except OSError as error:
        raise RobGIBError(f"the texts in {folder} cannot be read: {error}.") from error
    return [tokenise(text) for text in texts.data], np.asarray(texts.target), tuple(texts.target_names)


def embed_tokens(texts: Sequence[Sequence[str]], seed: int) -> dict[str, Array]:
    """Vectors (WIDTH,) in [0, 1] of the tokens that occur at least twice in ``texts``, from their neighbouring tokens.

    Singular vectors of the positive pointwise mutual information of tokens within :data:`WINDOW` places (Levy &
    Goldberg 2014), each component passed through the normal distribution function, so that it spreads over [0, 1].
    """
    from sklearn.decomposition import TruncatedSVD

    counts = Counter(token for text in texts for token in text)
    known = [token for token, count in counts.most_common(VOCABULARY) if count > 1]
    number = {token: i for i, token in enumerate(known)}
    rows: list[int] = []
    columns: list[int] = []
    for text in texts:
        codes = [number.get(token, -1) for token in text]
        for apart in range(1, WINDOW + 1):
            for a, b in zip(codes, codes[apart:], strict=False):
                if a >= 0 and b >= 0:
                    rows += (a, b)
                    columns += (b, a)
    if len(known) <= WIDTH or not rows:
        raise RobGIBError(
            f"the training texts have {len(known)} tokens that occur twice; vectors of width {WIDTH} need "
            f"more than {WIDTH}."
        )
    pairs = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(known),) * 2).tocsr().tocoo()
    share = np.asarray(pairs.sum(1)).ravel() / pairs.sum()
    mutual = np.log(pairs.data / pairs.data.sum() / (share[pairs.row] * share[pairs.col]))
    positive = sparse.csr_matrix((np.maximum(mutual, 0), (pairs.row, pairs.col)), shape=pairs.shape)
    vectors = TruncatedSVD(WIDTH, random_state=seed).fit_transform(positive)
    spread = vectors.std(0)
    scaled = stats.norm.cdf((vectors - vectors.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return dict(zip(known, scaled, strict=True))


def as_vectors(texts: Sequence[Sequence[str]], vectors: dict[str, Array]) -> Array:
    """Return texts as (N, LENGTH, WIDTH); tokens without a vector are 0.5 throughout."""
    x = np.full((len(texts), LENGTH, WIDTH), _MIDDLE, np.float32)
    for i, text in enumerate(texts):
        for j, token in enumerate(text):
            if token in vectors:
                x[i, j] = vectors[token]
    return x
