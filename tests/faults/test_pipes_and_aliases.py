"""What would be waited for, or would grow without end, is refused in a sentence."""

import os
import signal
from contextlib import contextmanager

import pytest

import robgib
from robgib import RobGIBError
from robgib.registry import read_yaml
from robgib.results import RUN_TABLES, find_run, load_run
from robgib.training.config import Training
from robgib.zoo.recipe import find_recipe, recipes

GOOD = "data: digits\narchitecture: {name: mlp}\n"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


class Late(BaseException):
    """Of no kind that the project catches: a TimeoutError is an OSError, which it turns into a sentence."""


@contextmanager
def in_time(seconds=20):
    """Fail where the block waits for something that does not come."""

    def late(*_):
        raise Late("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "it is no regular file"),
        ("- 1\n- 2\n", "must hold a mapping"),
        ("data: digits\nseed: " + "9" * 5000, "is not valid YAML"),
        (BOMB + GOOD, "holds more than 100,000 values with its aliases expanded"),
        (BOMB + "data: digits\narchitecture: {name: mlp, hidden: *i}\n", "more than 100,000 values"),
    ],
)
def test_one_bad_file_of_a_catalogue_is_left_out_and_said(text, words, tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    if text is None:
        os.mkfifo(tmp_path / "bad.yaml")
    else:
        (tmp_path / "bad.yaml").write_text(text)
    with in_time():
        with pytest.raises(RobGIBError, match=words):
            read_yaml(tmp_path / "bad.yaml")
        with pytest.warns(robgib.RobGIBWarning, match=words):
            found = recipes([tmp_path])
        assert "good" in found
        assert "bad" not in found
        assert find_recipe("good", [tmp_path]).name == "good"
        with pytest.raises(RobGIBError, match=words):
            find_recipe("bad", [tmp_path])
        with pytest.warns(robgib.RobGIBWarning, match=words):
            assert robgib.make_attack("pgd-linf", extra=[tmp_path]).eps > 0


def test_a_list_that_holds_itself(tmp_path):
    (tmp_path / "bad.yaml").write_text("data: &a [*a]\n")
    with in_time(), pytest.raises(RobGIBError, match="more than 100,000 values"):
        read_yaml(tmp_path / "bad.yaml")


def test_pictures_that_are_pipes(tmp_path):
    (tmp_path / "one").mkdir()
    os.mkfifo(tmp_path / "one" / "a.png")
    with in_time(), pytest.raises(RobGIBError, match=r"a\.png is no regular file"):
        robgib.load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("part", ["config.json", "environment.json", "pictures.npz", f"{RUN_TABLES[0]}.csv"])
def test_run_folders_that_hold_pipes(part, tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / part)
    with in_time():
        with pytest.raises(RobGIBError, match="no regular file"):
            load_run(tmp_path / "run")
        assert find_run(tmp_path, "anything") is None


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_seeds_that_no_generator_takes(seed):
    with pytest.raises(ValueError, match="seed"):
        Training(seed=seed)


@pytest.mark.parametrize(
    "command",
    [
        ["zoo", "table", "digits-mlp-relu", "--out", "."],
        ["zoo", "table", "digits-mlp-relu", "--out", "held.safetensors"],
        ["train", "digits-mlp-relu", "--out", "held.safetensors"],
        ["train", "digits-mlp-relu", "--out", "."],
        ["report", "run", "--out", "."],
        ["trace", "held.epochs", "--out", "."],
    ],
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(command, cli, tmp_path, monkeypatch):
    for name in ("held.safetensors", "run", "held.epochs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("robgib.zoo.loading.train", lambda *_, **__: pytest.fail("trained"))
    done = cli(*command)
    assert done.returncode == 2
    assert "folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"held.safetensors", "run", "held.epochs"}
    assert not any(any(p.iterdir()) for p in tmp_path.iterdir())
