"""Wrong input: one sentence that names it and the mend, exit code 2, nothing left behind."""

import pytest


def files(folder):
    """Files that are not what their names say."""
    (folder / "empty.pt").touch()
    (folder / "empty.pth").touch()
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "broken.pt").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "array.npz").write_bytes(b"\x93NUMPY\x01\x00junk")
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
        (("evaluate", "digits-cnn", "--layer", ""), "one of the names is empty"),
        (("evaluate", "digits-cnn", "--out", "a" * 300), "give --out"),
        (("evaluate", "digits-cnn", "--out", "a" * 230), "has a name of 230 bytes"),
        (("evaluate", "digits-cnn", "--quick", "--full"), "exclude each other"),
        (("evaluate", "digits-cnn", "--fail-under", "forty"), "a share such as 40%"),
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
