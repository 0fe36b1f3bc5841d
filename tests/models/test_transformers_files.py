"""Folders of transformers: nothing is fetched, imported or followed that their files name."""

import json
import re
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import robgib
from robgib import RobGIBError, RobGIBWarning
from robgib.models import load_pretrained

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    """A folder of a small network, and a function that changes one of its JSON files."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "net")

    def change(file="config.json", **entries):
        path = tmp_path / "net" / file
        told = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**told, **entries}))
        return f"hf:{tmp_path / 'net'}"

    return change


@pytest.fixture
def never(monkeypatch):
    """Fail where the library is handed the files."""
    monkeypatch.setattr(
        transformers.AutoModelForImageClassification, "from_pretrained", lambda *a, **b: pytest.fail("loaded")
    )


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"_attn_implementation": "kernels-community/flash-attn"}, "'kernels-community/flash-attn', which would be"),
        ({"_attn_implementation": {"": "someone/kernel@main:run"}}, "someone/kernel@main:run"),
        ({"attn_implementation": "paged|kernels-community/x"}, "which would be fetched and run"),
        ({"vision_config": {"_attn_implementation": "a/b"}}, "which would be fetched and run"),
        ({"parts": [{"_experts_implementation": "deepgemm"}]}, "which would be fetched and run"),
        ({"auto_map": {"AutoConfig": "net.Config"}}, r"names code of its own \(auto_map\)"),
        ({"quantization_config": {"quant_method": "awq"}}, "asks for quantised weights"),
        ({"use_pretrained_backbone": True, "backbone": "resnet50"}, "asks for another network's weights"),
        ({"transformers_weights": "../other.safetensors"}, "names the file of its weights"),
        ({"kernel_config": {"a": "b"}}, "names compiled code"),
        ({"model_args": {"checkpoint_path": "../net.pth"}}, r"names the file of its weights \(checkpoint_path\)"),
        ({"architecture": "hf-hub:someone/net"}, "'hf-hub:someone/net', which RobGIB does not fetch"),
        ({"architecture": "local-dir:../net"}, "'local-dir:../net', which RobGIB does not fetch"),
    ],
)
def test_what_a_configuration_may_not_ask_for(entries, told, folder, never):
    with pytest.raises(RobGIBError, match=told):
        load_pretrained(folder(**entries))


def test_an_adapter_of_another_network(folder, never):
    with pytest.raises(RobGIBError, match="holds an adapter of another network"):
        load_pretrained(folder("adapter_config.json", base_model_name_or_path="someone/net"))


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("part", ["../other.safetensors", "/etc/passwd", "sub/x.bin", "..", ["a.bin"], None])
def test_an_index_that_leads_elsewhere(file, part, folder, never):
    name = folder(file, weight_map={"a": part})
    with pytest.raises(
        RobGIBError, match=f"{re.escape(file)} of hf:.*(which is not a weights file beside it|not an index of weights)"
    ):
        load_pretrained(name)


@pytest.mark.parametrize("asked", ["flash_attention_2", "flash_attention_3", "sdpa", None])
def test_attention_is_torchs_own(asked, folder):
    found = load_pretrained(folder(_attn_implementation=asked))
    assert found.model.net.net.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"num_labels": -3}, r"config.json leaves out the trained classifier \('classifier.bias'\)"),
        ({"id2label": {}}, "config.json leaves out the trained classifier"),
        ({"id2label": {str(i): str(i) for i in range(5)}}, r"'classifier.bias' has the shape \(2,\) .* \(5,\) in the"),
        ({"image_size": 48}, r"'vit.embeddings.position_embeddings' has the shape"),
        ({"num_hidden_layers": 2}, "holds no weights for 'vit.layers.1"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(entries, reason, folder):
    """A network without its classifier answered with 16 features, which were read as logits."""
    with pytest.raises(RobGIBError, match=reason) as found:
        load_pretrained(folder(**entries))
    assert "\n" not in str(found.value)


@pytest.fixture
def pictures(tmp_path):
    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (40 * i, 9, 200)).save(tmp_path / "pictures" / name / f"{i}.png")
    return f"folder:{tmp_path / 'pictures'}"


def test_weights_that_the_network_does_not_take(folder, pictures, tmp_path):
    processing = {"image_mean": 0.5, "image_std": 0.5, "size": SIZE}
    name, file = folder("preprocessor_config.json", **processing), tmp_path / "net" / "model.safetensors"
    classes = {"classes": ["a", "b"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RobGIBWarning)
        robgib.load_model(name, data=pictures, **classes)
    save_file({**load_file(file), "distilled.weight": torch.zeros(2)}, file, {"format": "pt"})
    left_out = "1 tensor of the file was not used, since the network has none of these names: 'distilled.weight'"
    with pytest.warns(RobGIBWarning, match=f"net: {left_out}$"):
        robgib.load_model(name, data=pictures, **classes)
    assert left_out in robgib.zoo.load(name, data=pictures, progress=False, **classes).notes
    with pytest.warns(RobGIBWarning, match="17 tensors of the file were not used"):
        robgib.load_model(folder(num_hidden_layers=0), data=pictures, **classes)


@pytest.mark.parametrize("stated", [{}, {"image_mean": 0.5}])
def test_a_normalisation_that_no_file_states(stated, folder, pictures):
    """It was ImageNet's without a word; --normalize was refused."""
    name = folder("preprocessor_config.json", size=SIZE, **stated) if stated else folder()
    why = "its files do not state it" if stated else "it has no preprocessor_config.json"
    asked = {"data": pictures, "classes": ["a", "b"], "input_size": 32}
    sentence = (
        rf"net: the normalisation of images is assumed to be ImageNet's, since {why} \(--normalize states another"
    )
    with pytest.warns(RobGIBWarning, match=sentence):
        robgib.load_model(name, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RobGIBWarning)
        model, data = robgib.load_model(name, normalize="half", **asked)
        other, _ = robgib.load_model(name, mean="0.1,0.2,0.3", std="0.4", **asked)
    x = data.test.x
    with torch.no_grad():
        assert torch.allclose(model(x), model.net(2 * x - 1), atol=1e-5)
        shifted = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.4
        assert torch.allclose(other(x), other.net(shifted), atol=1e-5)


SIZE = {"height": 32, "width": 32}
WRONG = [
    ("image_mean", ["a"]), ("image_mean", None), ("image_mean", []), ("image_mean", [0.5, 0.5]), ("image_mean", {}),
    ("image_mean", [float("nan")] * 3), ("image_mean", [[0.5]] * 3), ("image_mean", True), ("image_std", None),
    ("image_std", [0, 0, 0]), ("image_std", "0.5"), ("crop_size", []), ("crop_size", [1, 2, 3]), ("crop_size", {}),
    ("crop_size", "224"), ("crop_size", 0), ("crop_size", -5), ("crop_size", 1.5), ("crop_size", {"height": None}),
    ("crop_size", 10**9), ("size", []), ("size", {}), ("size", "a"), ("size", {"shortest_edge": "a"}),
    ("size", {"shortest_edge": []}), ("size", {"longest_edge": 3}), ("resample", "a"), ("resample", 9),
    ("resample", [3]), ("resample", True), ("crop_pct", "a"), ("crop_pct", 0), ("crop_pct", -1), ("crop_pct", {}),
    ("do_normalize", "no"), ("do_center_crop", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_field_of_another_kind(key, value, folder):
    entries = {"size": SIZE, "crop_size": 32, key: value}
    with pytest.raises(RobGIBError, match=f"preprocessor_config.json of hf:.*: {key} must be ") as found:
        load_pretrained(folder("preprocessor_config.json", **entries))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"a"', "{", "", "[" * 100_000])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "model.safetensors.index.json", "config.json"])
def test_a_file_that_is_no_mapping(file, content, folder, tmp_path):
    name = folder()
    (tmp_path / "net" / file).write_text(content)
    with pytest.raises(RobGIBError) as found:
        load_pretrained(name)
    assert "\n" not in str(found.value)


def test_fields_that_are_null_as_the_library_writes_them(folder):
    nulls = dict.fromkeys(("crop_size", "do_center_crop", "crop_pct", "do_convert_rgb", "resample", "do_normalize"))
    found = load_pretrained(folder("preprocessor_config.json", size=SIZE, image_mean=0.5, image_std=[0.25], **nulls))
    assert (found.resize, found.crop, found.interpolation) == ((32, 32), None, "bilinear")
    assert (found.model.mean.flatten().tolist(), found.model.std.flatten().tolist()) == ([0.5], [0.25])
    found = load_pretrained(folder("preprocessor_config.json", do_normalize=False, image_mean=["a"]))
    assert found.model.std.flatten().tolist() == [1.0]


def test_images_of_timms_networks_are_processed_as_their_configuration_says(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet", num_classes=10)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "model.safetensors")
    said = {
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 64, 64], "crop_pct": 0.8,
        "interpolation": "bicubic",
    }  # fmt: skip
    config = {"model_type": "timm_wrapper", "architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_pretrained(f"hf:{tmp_path}")
    assert found.model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert found.model.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert (found.resize, found.crop, found.interpolation) == (80, (64, 64), "bicubic")
