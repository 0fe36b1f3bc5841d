"""Texts: token vectors, a Transformer over them, and attacks on the vectors."""

import numpy as np
import pytest

from robgib import RobGIBError, evaluate
from robgib.data.loaders import load_data
from robgib.data.text import LENGTH, WIDTH, as_vectors, embed_tokens, read_texts, tokenise
from robgib.models import build
from robgib.training.config import Training
from robgib.training.loop import train

_TOPICS = {
    "kitchen": "salt pepper oven butter flour knead bake stir simmer pan whisk sauce dough roast onion garlic",
    "sea": "harbour tide anchor sail mast rope wave captain deck gull current keel storm reef island voyage",
    "market": "price stall coin bargain seller trade basket crowd scale profit cloth barter debt ledger fair",
}
_COMMON = "the a of and with in on it was they then slowly before after near old"
COMMON = _COMMON.split(" ")
TOPICS = {topic: words.split(" ") for topic, words in _TOPICS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences of topic words and common words."""
    root = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for part, count in (("train", 100), ("test", 40)):
        for topic, words in TOPICS.items():
            (root / part / topic).mkdir(parents=True)
            for i in range(count):
                tokens = [rng.choice(words if rng.random() < 0.3 else COMMON) for _ in range(rng.integers(20, 40))]
                (root / part / topic / f"{i}.txt").write_text(" ".join(tokens).capitalize() + ".", encoding="utf-8")
    return root


def test_tokens():
    assert tokenise("It's 5 o'clock, Ünal!") == ["it", "'", "s", "5", "o", "'", "clock", ",", "ünal", "!"]
    assert len(tokenise("word " * 500)) == LENGTH


def test_neighbours_make_vectors(folder):
    data = load_data(f"text:{folder}")
    assert data.shape == (LENGTH, WIDTH)
    assert data.classes == ("kitchen", "market", "sea")
    texts = [tokenise(p.read_text()) for p in sorted((folder / "train").rglob("*.txt"))]
    vectors = embed_tokens(texts, 0)
    assert all(v.shape == (WIDTH,) and v.min() >= 0 and v.max() <= 1 for v in vectors.values())

    def near(a, b):
        return np.corrcoef(vectors[a], vectors[b])[0, 1]

    within = np.mean([near(w[i], w[i + 1]) for w in TOPICS.values() for i in range(10)])
    across = np.mean([near(TOPICS["sea"][i], TOPICS["kitchen"][i]) for i in range(10)])
    assert within > across + 0.1
    shown = as_vectors([["never-seen", "salt"]], vectors)
    assert (shown[0, 0] == 0.5).all()
    assert np.array_equal(shown[0, 1], vectors["salt"])
    assert load_data(f"text:{folder}").digest == data.digest


def test_learnt_attacked_and_measured(folder):
    data = load_data(f"text:{folder}")
    make = lambda: build("text-transformer", data.shape, 3, {"dim": 32, "depth": 2})  # noqa: E731
    model, result = train(make, data, Training(epochs=5, batch_size=64, learning_rate=0.003))
    assert result["test_accuracy"] > 0.9
    attacks = ["pgd-linf:eps=0.2", "pgd-l2", "square-linf:eps=0.2,queries=100"]
    run = evaluate(model, data, attacks=attacks, estimators=["gaussian"], samples=40, curve=False)
    table = run.robustness.set_index("attack")
    assert table.loc["pgd-linf:eps=0.2", "robust_accuracy"] < table.loc["pgd-linf:eps=0.2", "clean_accuracy"] - 0.1
    assert table.loc["pgd-l2", "status"] == "ok"
    assert table.loc["square-linf:eps=0.2,queries=100", "status"] == "ok"  # sequences as images of one channel
    assert set(run.layers["layer"]) == {"project", "blocks.0", "blocks.1", "logits", "Ŷ", "Y"}
    assert set(run.layers["partition"]) == {"tokens:4", "tokens:8"}
    assert run.features["feature"].iloc[0] == "tokens 0-15"
    degrees = run.layers["term"].isin(["r(X;Z)", "v(X;Z)"])  # none where nothing is told
    assert not run.layers[(run.layers["depth"] >= 0) & ~degrees]["value"].isna().any()


def test_features_by_tokens_are_for_sequences(digits, digits_cnn):
    with pytest.raises(RobGIBError, match=r"'tokens:4' need sequences \(N, L, D\)"):
        evaluate(digits_cnn, digits, attacks=[], features="tokens:4", information_samples=100)
    with pytest.raises(RobGIBError, match=r"takes token vectors \(L, D\)"):
        build("text-transformer", (1, 8, 8), 10)
    with pytest.raises(RobGIBError, match="need images; data set"):
        train(lambda: build("mlp", (12,), 2), load_data("function:parity-2"), Training(epochs=1, flip=True))


def test_hidden_folders_are_no_classes(folder, tmp_path):
    for topic in ("sea", ".git", ".ipynb_checkpoints"):
        (tmp_path / topic).mkdir()
        (tmp_path / topic / "1.txt").write_text("one two")
    assert read_texts(tmp_path)[2] == ("sea",)


def test_bad_folders(tmp_path, folder):
    with pytest.raises(RobGIBError, match="does not exist"):
        load_data(f"text:{tmp_path / 'nowhere'}")
    with pytest.raises(RobGIBError, match="must hold train/ and test/"):
        load_data(f"text:{tmp_path}")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(RobGIBError, match="holds no folders of texts"):
        load_data(f"text:{tmp_path}")
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(RobGIBError, match="holds no texts"):
        load_data(f"text:{tmp_path}")
    (tmp_path / "train" / "a" / "1.txt").write_text("one two")
    (tmp_path / "test" / "b").mkdir()
    (tmp_path / "test" / "b" / "1.txt").write_text("one two")
    with pytest.raises(RobGIBError, match="must hold the same classes"):
        load_data(f"text:{tmp_path}")
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "a")
    with pytest.raises(RobGIBError, match="0 tokens that occur twice"):
        load_data(f"text:{tmp_path}")
