"""Networks that libraries hold trained, with what their makers say of input and classes; weights made here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import robgib
from robgib import RobGIBError
from robgib._torchvision import load_torchvision
from robgib.models import Normalization, build, load_pretrained, normalization
from robgib.models.registry import load_timm


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    """torchvision's smallest network, with random weights in the place of its trained ones."""
    torchvision = load_torchvision()
    folder = tmp_path_factory.mktemp("hub")
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(weights=None).eval()
    (folder / "checkpoints").mkdir()
    torch.save(net.state_dict(), folder / "checkpoints" / weights.url.rpartition("/")[2])
    return folder, net, weights


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("n02099601", "n01440764"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i, size in enumerate(((300, 260), (64, 90), (256, 256), (40, 50))):
            Image.fromarray(rng.integers(256, size=(*size, 3)).astype(np.uint8)).save(
                tmp_path / "val" / name / f"{i}.png"
            )
    return tmp_path / "val"


def test_torchvision_is_as_its_own_transforms_have_it(small_weights, pictures, monkeypatch):
    folder, net, weights = small_weights
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    found = robgib.zoo.load("torchvision:mobilenet_v3_small", data=f"folder:{pictures}", progress=False)
    assert found.data.shape == (3, 224, 224)
    assert sorted(set(found.data.test.y.tolist())) == [0, 207]  # ImageNet's numbers of the two
    assert found.notes == (
        "images are resized to a shorter side of 256 (bilinear), the middle 224x224 of each",
        "images are normalised by mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225 (imagenet)",
    )
    transform = weights.transforms()
    for image, label in zip(found.data.test.x, found.data.test.y.tolist(), strict=True):
        name = "n02099601" if label == 207 else "n01440764"
        with torch.no_grad():
            theirs = [net(transform(Image.open(pictures / name / f"{i}.png"))[None]) for i in range(4)]
            ours = found.model(image[None])
        gaps = [float((t - ours).abs().max()) for t in theirs]
        assert min(gaps) < 1e-4 * float(ours.abs().max()) + 1e-5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet8", "unknown torchvision model 'resnet8'"),
        ("torchvision:resnet18/IMAGENET1K_V9", "did you mean 'IMAGENET1K_V1'"),
        ("timm:resnet-18", "unknown timm model 'resnet-18'"),
        ("hf:./nowhere/at/all", "could not be loaded"),
    ],
)
def test_what_there_is_not(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RobGIBError, match=message):
        load_pretrained(name)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(RobGIBError, match=r"could not be loaded \(OSError: no network\); put https://.* into "):
        load_pretrained("torchvision:resnet18")


def test_data_are_needed_and_options_of_files_refused():
    with pytest.raises(RobGIBError, match="has no data set of its own; give --data"):
        robgib.zoo.load("timm:resnet18")
    with pytest.raises(RobGIBError, match="has its own architecture and weights"):
        robgib.zoo.load("timm:resnet18", data="digits", arch="mlp")
    with pytest.raises(RobGIBError, match="a normalisation applies to checkpoint files only; 'digits-mlp' has its own"):
        robgib.zoo.load("digits-mlp", normalization=Normalization((0.5,), (0.5,)))


def test_timm_brings_its_own_normalisation():
    timm = load_timm()
    name = "tf_efficientnet_lite0"
    told = timm.get_pretrained_cfg(name)
    model = build(f"timm:{name}", (3, 32, 32), 5)
    assert tuple(model.mean.flatten().tolist()) == tuple(told.mean) == (0.5, 0.5, 0.5)
    asked = build(f"timm:{name}", (3, 32, 32), 5, {"mean": [0.1] * 3})
    assert torch.allclose(asked.mean.flatten(), torch.tensor([0.1] * 3))


def test_timm_pretrained(monkeypatch):
    timm = load_timm()
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    found = load_pretrained("timm:resnet18.a1_in1k")
    told = timm.data.resolve_model_data_config(create("resnet18.a1_in1k"))
    assert (found.crop, found.interpolation) == ((224, 224), told["interpolation"])
    assert found.resize == int(224 / told["crop_pct"])
    assert len(found.classes) == 1000
    assert tuple(round(v, 3) for v in found.model.mean.flatten().tolist()) == told["mean"]


def test_a_folder_of_transformers(tmp_path, pictures):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    config.id2label = {0: "tench, Tinca tinca", 1: "golden retriever"}
    config.label2id = {v: k for k, v in config.id2label.items()}
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "vit")
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    (pictures / "n02099601").rename(pictures / "golden retriever")
    (pictures / "n01440764").rename(pictures / "Tinca tinca")
    for name in (f"hf:{tmp_path / 'vit'}", tmp_path / "vit"):
        found = robgib.zoo.load(name, data=f"folder:{pictures}", progress=False)
        x = found.data.test.x.read() if hasattr(found.data.test.x, "read") else found.data.test.x
        assert found.data.shape == (3, 32, 32)
        assert torch.allclose(found.model(x), net((x - 0.5) / 0.25).logits, atol=1e-5)
        assert set(found.data.classes) == {"tench, Tinca tinca", "golden retriever"}
        assert found.notes[0] == "images are resized to 32x32 (bicubic)"


def test_normalisations_by_name_and_bounds():
    x = torch.rand(2, 3, 4, 4)
    same = torch.nn.Identity()
    half = normalization("half").before(same, 3)
    assert torch.allclose(half(x), 2 * x - 1, atol=1e-6)
    stretched = Normalization((10.0,), (2.0,), (0.0, 255.0)).before(same, 3)
    assert torch.allclose(stretched(x), (255 * x - 10) / 2, atol=1e-4)
    shifted = Normalization(bounds=(-1.0, 1.0)).before(same, 3)
    assert torch.allclose(shifted(x), 2 * x - 1, atol=1e-6)
    with pytest.raises(RobGIBError, match="did you mean 'imagenet'"):
        normalization("imagnet")
    with pytest.raises(RobGIBError, match="2 means were given, but the images have 3 channels"):
        Normalization((0.1, 0.2), (1.0, 1.0)).before(same, 3)
    with pytest.raises(RobGIBError, match="positive standard deviations"):
        Normalization((0.1,), (0.0,))


def test_grey_images_stay_widened_behind_another_normalisation(tmp_path):
    net = build("torchvision:resnet18", (1, 8, 8), 10).eval()
    torch.save(net.net.state_dict(), tmp_path / "net.pt")
    found = robgib.zoo.load(
        str(tmp_path / "net.pt"), arch="torchvision:resnet18", data="digits", normalization=normalization("half")
    )
    x = found.data.test.x[:3]
    assert torch.allclose(found.model(x), net.net(2 * x.expand(-1, 3, -1, -1) - 1), atol=1e-5)
