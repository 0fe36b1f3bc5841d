"""Wrong input: one sentence that names it and the mend, exit code 2, nothing left behind."""

import os

import numpy as np
import pytest

from robgib import RobGIBError, load_data


def files(folder):
    """Files that are not what their names say."""
    (folder / "empty.pt").touch()
    (folder / "empty.pth").touch()
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "broken.pt").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "array.npz").write_bytes(b"\x93NUMPY\x01\x00junk")
    _write_zip(folder / "net.pt")
    (folder / "deep.yaml").write_text("[" * 100_000)
    (folder / "date.yaml").write_text("question: 2026-13-45\n")


NET = ("--arch", "mlp", "--data", "digits")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "empty.pt", *NET), "empty.pt is empty"),
        (("evaluate", "empty.pth", *NET), "empty.pth is empty"),
        (("evaluate", "page.pt", *NET), "page.pt is a web page"),
        (("evaluate", "pointer.pt", *NET), "git lfs pull"),
        (("evaluate", "broken.pt", *NET), "broken.pt is not a readable PyTorch file"),
        (("evaluate", "digits-cnn", "--data", "npz:array.npz"), "array.npz is not a readable .npz file"),
        (("evaluate", "digits-cnn", "--seed", "-1"), "seed"),
        (("evaluate", "digits-cnn", "--seed", str(2**70)), "seed"),
        (("evaluate", "digits-cnn", "--attack", f"pgd-linf:eps={'9' * 400}"), "number of 400 characters"),
        (("evaluate", "digits-cnn", "--attack", f"pgd-linf:steps={'9' * 400}"), "number of 400 characters"),
        (("evaluate", "digits-cnn", "--estimator", "binned:codes=-1"), "codes must be at least 2"),
        (("evaluate", "digits-cnn", "--layer", ""), "one name is empty"),
        (("evaluate", "digits-cnn", "--out", "a" * 300), "give --out"),
        (("evaluate", "digits-cnn", "--out", "a" * 230), "has a name of 230 bytes"),
        (("evaluate", "digits-cnn", "--quick", "--full"), "exclude each other"),
        (("evaluate", "digits-cnn", "--fail-under", "forty"), "a share such as 40%"),
        (("evaluate", "net.pt", *NET, "--normalize", "imagnet"), "did you mean 'imagenet'"),
        (("evaluate", "net.pt", *NET, "--mean", "0.5"), "--mean and --std belong together"),
        (("evaluate", "net.pt", *NET, "--mean", "a", "--std", "1"), "--mean must be numbers"),
        (("evaluate", "net.pt", *NET, "--mean", "0.5", "--std", "0"), "positive standard deviations"),
        (("evaluate", "net.pt", *NET, "--normalize", "half", "--mean", "0.5", "--std", "1"), "exclude each other"),
        (("evaluate", "net.pt", *NET, "--bounds", "1"), "--bounds must be two numbers"),
        (("evaluate", "net.pt", *NET, "--bounds", "1,0"), "two increasing numbers"),
        (("evaluate", "net.pt", *NET, "--input-size", "8", "--crop", "4"), "give --input-size or the other two"),
        (("evaluate", "net.pt", *NET, "--resize", "4", "--crop", "8"), "does not fit a shorter side of 4"),
        (("evaluate", "net.pt", *NET, "--crop", "9"), "smaller than the crop of 9x9"),
        (("evaluate", "net.pt", *NET, "--interpolation", "cubic"), "did you mean 'bicubic'"),
        (("evaluate", "net.pt", *NET, "--weights-key", "ema"), "unknown weights in net.pt: 'ema'"),
        (("evaluate", "digits-cnn", "--weights-key", "ema"), "--weights-key applies to checkpoint files"),
        (("evaluate", "digits-cnn", "--crop", "4"), "give --data too"),
        (("evaluate", "timm:resnet18"), "has no data set of its own; give --data"),
        (("evaluate", "torchvision:resnet8", "--data", "digits"), "unknown torchvision model"),
        (("evaluate", "hf:nowhere", "--data", "folder:nowhere"), "'nowhere' does not exist"),
        (("study", "plan", "deep.yaml"), "deep.yaml is not valid YAML"),
        (("study", "run", "date.yaml"), "month must be in 1..12"),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, tuple) else None,
)
def test_one_sentence_and_nothing_left(cli, tmp_path, arguments, words):
    files(tmp_path)
    before = set(tmp_path.iterdir())
    done = cli(*arguments, "--quiet") if arguments[0] == "evaluate" else cli(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert set(tmp_path.iterdir()) == before


def _state():
    import torch

    from robgib.models import build

    torch.manual_seed(0)
    return build("mlp", (1, 8, 8), 10).state_dict()


def _write_safetensors(path):
    from safetensors.torch import save_file

    save_file(dict(_state()), str(path))


def _write_zip(path):
    import torch

    torch.save({"state_dict": _state(), "epoch": 3}, path)


def _write_legacy(path):
    import torch

    torch.save({"state_dict": _state(), "args": Unknown()}, path, _use_new_zipfile_serialization=False)


def _write_lightning(path):
    import torch

    torch.save({"state_dict": {f"model.{k}": v for k, v in _state().items()}, "hyper_parameters": Unknown()}, path)


def _write_arrays(path):
    rng = np.random.default_rng(0)
    np.savez_compressed(path, x_test=rng.random((30, 1, 8, 8), np.float32), y_test=rng.integers(10, size=30))


def _write_picture(path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8)).astype(np.uint8)).save(path)


class Unknown:
    """Of a stranger's program."""

    def __init__(self):
        self.rate = 0.1


def _load(path):
    from robgib.zoo.loading import load_checkpoint

    load_checkpoint(path, arch="mlp", data="digits")


DAMAGED = {
    "net.safetensors": (_write_safetensors, _load),
    "net.pt": (_write_zip, _load),
    "net.pth": (_write_legacy, _load),
    "net.ckpt": (_write_lightning, _load),
    "data.npz": (_write_arrays, lambda path: load_data(f"npz:{path}")),
    "pictures/cat/1.png": (_write_picture, lambda path: load_data(f"folder:{path.parent.parent}")),
    "grey/cat/1.tiff": (_write_picture, lambda path: load_data(f"folder:{path.parent.parent}")),
    "photo/cat/1.jpg": (_write_picture, lambda path: load_data(f"folder:{path.parent.parent}")),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(name, tmp_path):
    """Cut short at 20 places and changed at 30: each time a whole result or one sentence, 400 cases in all."""
    write, read = DAMAGED[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    read(path)
    rng = np.random.default_rng(0)
    cut = [whole[: len(whole) * k // 20] for k in range(20)]
    changed = []
    for k in range(30):
        damaged = bytearray(whole)
        at = int(rng.integers(min(len(whole), 2000))) if k % 2 else int(rng.integers(len(whole)))
        damaged[at] ^= int(rng.integers(1, 256))
        changed.append(bytes(damaged))
    refused = 0
    for content in [*cut, *changed]:
        path.write_bytes(content)
        try:
            read(path)
        except RobGIBError as error:
            refused += 1
            sentence = str(error).strip()
            assert "\n" not in sentence, sentence
    assert refused >= len(cut) - 2


def test_labels_beyond_all_classes(tmp_path):
    np.savez(tmp_path / "far.npz", x=np.zeros((2, 1, 4, 4), np.float32), y=np.array([0, 10**9]))
    with pytest.raises(RobGIBError, match="class numbers below 100,000"):
        load_data(f"npz:{tmp_path / 'far.npz'}")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    for name, message in (("pipe.pt", "is not a file"), ("folder.pt", "holds neither model.safetensors")):
        with pytest.raises(RobGIBError, match=message):
            _load(tmp_path / name)
