import hashlib
import json
import re
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

from robgib import RobGIBError, make_attack
from robgib.models import Normalization, build
from robgib.options import Context, ModelOptions
from robgib.robustness.run_attack import run_attack
from robgib.training.config import Training
from robgib.training.loop import accuracy, train
from robgib.training.losses import augment
from robgib.zoo.loading import add_recipe, load, load_checkpoint, load_recipe, stored_checkpoint, train_recipe
from robgib.zoo.recipe import PretrainedWeights, Recipe, find_recipe, recipes

RECIPE = """
data: digits
architecture: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 256}
"""


@pytest.fixture
def quick(tmp_path):
    (tmp_path / "quick.yaml").write_text(RECIPE)
    return find_recipe("quick", [tmp_path])


def test_a_recipe_of_one_of_several_networks_in_a_file(tmp_path, digits, cli):
    """There was no way to say which one."""
    nets = {name: build("mlp", digits.shape, 10, {"hidden": [8]}).eval() for name in ("teacher", "student")}
    torch.save({f"{name}.{k}": v for name, net in nets.items() for k, v in net.state_dict().items()}, tmp_path / "n.pt")
    (tmp_path / "n.json").write_text(json.dumps({"architecture": {"name": "mlp", "hidden": [8]}, "data": "digits"}))
    digests = set()
    with pytest.raises(RobGIBError, match="choose one with --weights-key"):
        add_recipe(tmp_path / "n.pt", "both", tmp_path)
    for name, net in nets.items():
        add_recipe(tmp_path / "n.pt", f"the-{name}", tmp_path, weights_key=name)
        recipe = find_recipe(f"the-{name}", [tmp_path])
        assert recipe.checkpoint.weights_key == name
        digests.add(recipe.digest)
        x = digits.test.x[:5]
        assert torch.equal(load_recipe(recipe, digits)[0](x), net(x))
    assert len(digests) == 2
    done = cli(
        "zoo", "add", str(tmp_path / "n.pt"), "--name", "said", "--weights-key", "teacher", "--into", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "weights_key: teacher" in (tmp_path / "said.yaml").read_text()


def test_the_recipes_that_are_promised():
    digits = {f"digits-{kind}" for kind in ("cnn", "cnn-at", "vit", "mlp-tanh", "mlp-relu")}
    promised = digits | {f"fashion-{kind}" for kind in ("cnn", "cnn-at", "vit")}
    assert promised <= set(recipes())


@pytest.mark.parametrize(
    ("name", "least"), [("digits-cnn", 0.96), pytest.param("digits-vit", 0.93, marks=pytest.mark.slow)]
)
def test_promised_accuracy(name, least, digits):
    model, record = load_recipe(find_recipe(name), digits)
    assert accuracy(model, digits.test) >= least
    assert record["test_accuracy"] == pytest.approx(accuracy(model, digits.test))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("fashion-cnn", 0.90), ("fashion-vit", 0.85)])
def test_promised_accuracy_on_fashion_mnist(name, least, fashion):
    model, _ = load_recipe(find_recipe(name), fashion)
    assert accuracy(model, fashion.test) >= least


@pytest.mark.slow
def test_adversarial_training_makes_robust(digits, digits_cnn):
    model, record = load_recipe(find_recipe("digits-cnn-at"), digits)
    assert record["test_accuracy"] >= 0.96
    x, y = digits.test.x[:300], digits.test.y[:300]
    robust, plain = (
        (run_attack(m, x, y, make_attack("pgd-linf:eps=0.1")).prediction == y.numpy()).mean()
        for m in (model, digits_cnn)
    )
    assert robust > 0.6 > 0.4 > plain


@pytest.mark.parametrize("adversary", [{"eps": 0.1, "steps": 1}, {"norm": "l2", "eps": 0.5, "steps": 2}])
def test_adversaries_of_each_norm(adversary, quick, digits, tmp_path):
    training = Training(epochs=1, batch_size=256, adversary=adversary)
    recipe = quick.model_copy(update={"training": training})
    assert recipe.digest != quick.digest
    one, two = (train_recipe(recipe, digits, tmp_path / f"{n}.safetensors")[0] for n in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    plain, _, _ = train_recipe(
        quick.model_copy(update={"training": Training(epochs=1, batch_size=256)}), digits, tmp_path / "c.safetensors"
    )
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), plain.parameters(), strict=True))


def test_cached_models_are_not_trained_again(quick, digits, cache):
    calls = []
    _, record = load_recipe(quick, digits, progress=lambda *a: calls.append(a))
    assert calls
    calls.clear()
    model, again = load_recipe(quick, digits, progress=lambda *a: calls.append(a))
    assert not calls
    assert not model.training
    assert again == record
    for key in ("recipe_digest", "data_digest", "seed", "test_accuracy", "environment"):
        assert key in record


def test_training_is_deterministic_and_leaves_the_global_generator(quick, digits, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, _, _ = train_recipe(quick, digits, tmp_path / "a.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    two, _, _ = train_recipe(quick, digits, tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_own_checkpoints_know_what_they_are(quick, digits, tmp_path):
    model, _, path = train_recipe(quick, digits, tmp_path / "mine.safetensors", epochs=2)
    assert json.loads(path.with_suffix(".json").read_text())["epochs"] == 2
    found = load_checkpoint(path)
    loaded, data = found.model, found.data
    assert data.name == "digits"
    assert torch.equal(loaded(digits.test.x[:5]), model(digits.test.x[:5]))


def test_options_as_an_object_and_by_name(quick, digits, tmp_path):
    _, _, path = train_recipe(quick, digits, tmp_path / "mine.safetensors")
    options = ModelOptions(data="digits", normalize="half")
    by_object = load(path, options)
    by_name = load(path, data="digits", normalization=Normalization((0.5,), (0.5,)))
    assert by_object.notes == by_name.notes == ("images are normalised by mean 0.5, std 0.5 (half)",)
    plain = load_checkpoint(path, replace(options, normalize=None), context=Context(seed=0))
    x = digits.test.x[:5]
    assert torch.equal(by_object.model(x), by_name.model(x))
    assert torch.allclose(by_object.model(x), plain.model(2 * x - 1), atol=1e-6)
    with pytest.raises(RobGIBError, match="unknown option of load: 'archs'; did you mean 'arch'"):
        load(path, archs="mlp")


def test_a_strangers_checkpoint_needs_arch_and_data(quick, digits, tmp_path):
    _, _, path = train_recipe(quick, digits, tmp_path / "mine.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(RobGIBError, match="give --arch"):
        load_checkpoint(path, data="digits")
    with pytest.raises(RobGIBError, match="give --data"):
        load_checkpoint(path, arch="mlp")
    with pytest.raises(RobGIBError, match="does not fit the architecture"):
        load_checkpoint(path, arch="cnn", data="digits")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            RECIPE.replace("epochs: 1", "epochs: -1"),
            r"line 4: training.epochs: input should be greater than 0 \(found -1\)",
        ),
        (RECIPE.replace("epochs", "epoks"), "training.epoks: extra inputs are not permitted"),
        (RECIPE.replace("digits", "digit"), "did you mean 'digits'"),
        ("data: digits\narchitecture: {}\n", "line 2: architecture.name: field required"),
        (RECIPE + "  \ntraning: {}\n", "line 6: traning: extra inputs are not permitted"),
        ("data: [\n", "not valid YAML"),
        ("data: 2024-13-45\n", "not valid YAML"),
        ("data: digits\ntraining: {epochs: 2}\n", "needs an architecture, or a checkpoint"),
    ],
)
def test_bad_recipes(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(RobGIBError, match=message):
        find_recipe("bad", [tmp_path])


def test_unknown_model():
    with pytest.raises(RobGIBError, match="unknown model 'digits-cn'; did you mean 'digits-cnn'"):
        find_recipe("digits-cn")


def test_divergence_is_said(digits):
    from robgib.models import build

    config = Training(epochs=1, optimizer="sgd", learning_rate=1e30, clip=1e30)
    with pytest.raises(RobGIBError, match="training diverged in epoch 1"):
        train(lambda: build("mlp", (1, 8, 8), 10), digits, config)


def testaugmentation_shifts_whole_images():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    moved = augment(x, shift=1, flip=False)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = {tuple(p.tolist()) for p in moved.nonzero()[:, 2:]}
    assert places == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_plugin_architectures(tmp_path, digits):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom robgib import register_architecture\n\n"
        "@register_architecture('linear')\ndef linear(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    (tmp_path / "digits-linear.yaml").write_text(RECIPE.replace("mlp, hidden: [8]", "linear"))
    model, record = load_recipe(find_recipe("digits-linear", [tmp_path]), digits)
    assert model(digits.test.x[:2]).shape == (2, 10)
    assert record["name"] == "digits-linear"


class TestStored:
    """Recipes of finished checkpoints."""

    @pytest.fixture
    def net(self, quick, digits, tmp_path):
        model, _, path = train_recipe(quick, digits, tmp_path / "net.safetensors")
        return model, path

    @pytest.fixture
    def server(self, net):
        """Serves the checkpoint; ``log`` holds the Range of each request, ``cut`` ends the answers early."""

        class Handler(BaseHTTPRequestHandler):
            log, cut, ranges = [], [None], [True]

            def do_GET(self):
                content = net[1].read_bytes()
                asked = self.headers.get("Range")
                self.log.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges[0] else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : self.cut[0]])

            def log_message(self, *arguments):
                pass

        served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        served.shutdown()
        served.server_close()

    @staticmethod
    def recipe(folder, place, content, **others):
        sha = hashlib.sha256(content).hexdigest()
        text = {
            "data": "digits",
            "architecture": {"name": "mlp", "hidden": [8]},
            "checkpoint": {**place, "sha256": sha, **others},
        }
        (folder / "mine.yaml").write_text(yaml.safe_dump(text))
        return find_recipe("mine", [folder])

    def test_added_from_a_file(self, net, digits, tmp_path):
        model, path = net
        written, accuracy_found = add_recipe(path, "mine", tmp_path / "zoo")
        assert accuracy_found == pytest.approx(accuracy(model, digits.test))
        recipe = find_recipe("mine", [tmp_path])
        assert recipe.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        loaded, record = load_recipe(recipe, digits)
        assert torch.equal(loaded(digits.test.x[:5]), model(digits.test.x[:5]))
        assert record["name"] == "quick"
        with pytest.raises(RobGIBError, match="a model 'mine' exists already"):
            add_recipe(path, "mine", tmp_path / "zoo")
        with pytest.raises(RobGIBError, match="cannot be trained"):
            train_recipe(recipe, digits)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(RobGIBError, match="changed or damaged"):
            load_recipe(recipe, digits)
        path.unlink()
        with pytest.raises(RobGIBError, match="does not exist"):
            load_recipe(recipe, digits)
        assert written.is_file()

    def test_what_does_not_load_is_not_added(self, net, tmp_path):
        _, path = net
        path.with_suffix(".json").unlink()
        for arch, message in ((None, "give --arch"), ("cnn", "does not fit")):
            with pytest.raises(RobGIBError, match=message):
                add_recipe(path, "mine", tmp_path / "zoo", arch=arch, data_name="digits")
        with pytest.raises(RobGIBError, match="lower-case letters"):
            add_recipe(path, "My Net", tmp_path / "zoo")
        assert not (tmp_path / "zoo").exists()

    def test_downloaded_once_and_offline_afterwards(self, net, server, digits, tmp_path):
        model, path = net
        recipe = self.recipe(
            tmp_path, {"url": f"http://127.0.0.1:{server.server_port}/a.safetensors"}, path.read_bytes()
        )
        log = server.RequestHandlerClass.log
        for _ in range(2):
            loaded, _ = load_recipe(recipe, digits)
            assert torch.equal(loaded(digits.test.x[:5]), model(digits.test.x[:5]))
        assert log == [None]

    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_broken_download_goes_on(self, ranges, net, server, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        content = net[1].read_bytes()
        handler = server.RequestHandlerClass
        handler.ranges[0] = ranges
        handler.cut[0] = 1000
        recipe = self.recipe(tmp_path, {"url": f"http://127.0.0.1:{server.server_port}/b.safetensors"}, content)
        with pytest.raises(RobGIBError, match="the received part is kept for the next attempt"):
            stored_checkpoint(recipe)
        handler.cut[0] = None
        assert stored_checkpoint(recipe).read_bytes() == content
        assert handler.log[-2:] == [None, "bytes=1000-"]

    def test_another_digest(self, net, server, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        recipe = self.recipe(tmp_path, {"url": f"http://127.0.0.1:{server.server_port}/c.safetensors"}, b"other")
        with pytest.raises(RobGIBError, match=r"but the recipe states .*; it was not kept"):
            stored_checkpoint(recipe)
        assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]

    def test_no_network(self, net, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        recipe = self.recipe(tmp_path, {"url": "http://127.0.0.1:9/d.safetensors"}, b"")
        with pytest.raises(RobGIBError, match="could not be downloaded"):
            stored_checkpoint(recipe)

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ({"sha256": "0" * 64}, "give either file or url"),
            ({"file": "a.pt", "sha256": "abc"}, "checkpoint.sha256"),
            ({"url": "ftp://x/y.pt", "sha256": "0" * 64}, "checkpoint.url"),
        ],
    )
    def test_bad_keys(self, checkpoint, message, tmp_path):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": "digits", "checkpoint": checkpoint}))
        with pytest.raises(RobGIBError, match=message):
            find_recipe("mine", [tmp_path])


def test_groups_from_the_command_line(cli, invoke, tmp_path):
    folder = tmp_path / "zoo" / "pair"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        (folder / f"pair-{seed}.yaml").write_text(RECIPE.replace("256", f"64, seed: {seed}"))
    options = ("--catalogue", ".", "--quiet")
    done = cli("zoo", "train", "--group", "pair", *options)
    assert done.returncode == 0, done.stderr
    assert "pair-0" in done.stdout
    assert "pair-1" in done.stdout
    done = cli("zoo", "table", "--group", "pair", "--samples", "100", "--out", "table.md", *options)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "table.md").read_text()
    assert page.count("| pair-") == 2
    assert "`robgib zoo table --group pair`" in page
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| pair-")]
    for row in rows:
        clean, robust = (float(row[i].rstrip("%")) for i in (4, 5))
        assert 0 <= robust < clean <= 100
    for arguments, message in (
        (("zoo", "train"), "name models, or give --group (fashion-24, pair)"),
        (("zoo", "table", "--group", "pears"), "did you mean 'pair'"),
        (("zoo", "list", "--group", "pears"), "unknown group"),
    ):
        assert message in invoke(*arguments, "--catalogue", ".")


def test_a_checkpoint_is_added_and_evaluated_by_name(cli, invoke, tmp_path):
    (tmp_path / "quick.yaml").write_text(RECIPE)
    assert "Checkpoint" in invoke("train", "quick", "--catalogue", ".", "--out", "net.safetensors", "--quiet")
    done = cli("zoo", "add", "net.safetensors", "--name", "my-net", "--description", "Mine")
    assert done.returncode == 0, done.stderr
    assert "robgib evaluate my-net --catalogue zoo" in done.stdout
    fast = (
        "--samples", "50", "--no-curve", "--no-signs", "--no-corruptions", "--quiet", "--estimator", "gaussian"
    )  # fmt: skip
    done = cli("evaluate", "my-net", "--catalogue", "zoo", "--attack", "fgsm-linf", *fast)
    assert done.returncode == 0, done.stderr
    for arguments, word in (
        (("list",), "my-net"),
        (("layers", "my-net"), "blocks.0"),
        (("show", "my-net"), "net.safetensors"),
    ):
        assert word in invoke("zoo", *arguments, "--catalogue", "zoo")


class TestFilesThatNameCode:
    """What a file names is looked up; it is imported and run only where a person says so."""

    FAST = (
        "--samples", "20", "--attack", "fgsm-linf", "--no-curve", "--no-signs", "--no-corruptions", "--quiet",
        "--estimator", "gaussian",
    )  # fmt: skip
    EVIL = {"name": "os:system", "command": "touch PWNED"}
    NET = "from robgib.models import build\n\n\ndef make():\n    return build('mlp', (1, 8, 8), 10, {'hidden': [8]})\n"

    @pytest.fixture
    def net(self, quick, digits, tmp_path):
        return train_recipe(quick, digits, tmp_path / "net.safetensors")[2]

    @staticmethod
    def name(path, architecture):
        beside = path.with_suffix(".json")
        beside.write_text(json.dumps({**json.loads(beside.read_text()), "architecture": architecture}))

    @pytest.fixture
    def mynet(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("sys.dont_write_bytecode", True)
        (tmp_path / "robgib_test_net.py").write_text(self.NET)
        yield "robgib_test_net:make"
        sys.modules.pop("robgib_test_net", None)

    def test_a_record_runs_nothing(self, net, invoke, tmp_path):
        self.name(net, self.EVIL)
        (tmp_path / "saved").mkdir()
        for suffix in (".safetensors", ".json"):
            (tmp_path / "saved" / f"epoch-0001{suffix}").write_bytes(net.with_suffix(suffix).read_bytes())
        for command in (
            ("evaluate", "net.safetensors", *self.FAST),
            ("zoo", "add", "net.safetensors", "--name", "bad"),
            ("trace", "saved", "--quiet"),
        ):
            said = invoke(*command)
            assert "names the architecture 'os:system'" in said
            assert "record" in said
            assert ".json" in said
            assert "--allow-code" in said
        assert not (tmp_path / "PWNED").exists()
        assert not (tmp_path / "zoo").exists()

    def test_a_recipe_runs_nothing(self, invoke, digits, tmp_path):
        (tmp_path / "zoo" / "bad").mkdir(parents=True)
        text = yaml.safe_dump({"data": "digits", "architecture": self.EVIL, "training": {"epochs": 1}})
        (tmp_path / "zoo" / "bad" / "evil.yaml").write_text(text)
        for command in (
            ("evaluate", "evil", *self.FAST),
            ("train", "evil"),
            ("zoo", "train", "evil"),
            ("zoo", "train", "--group", "bad"),
            ("zoo", "table", "--group", "bad"),
            ("zoo", "layers", "evil"),
        ):
            said = invoke(*command, "--catalogue", ".")
            assert "evil.yaml names the architecture 'os:system'" in said, command
        for command in (("zoo", "list"), ("zoo", "show", "evil")):  # to look at it is no harm
            assert "os:system" in invoke(*command, "--catalogue", ".")
        listed = recipes([tmp_path])["evil"]
        for use in (load_recipe, train_recipe):
            with pytest.raises(RobGIBError, match="allow_code=True"):
                use(listed, digits)
        assert not (tmp_path / "PWNED").exists()

    def test_where_it_is_allowed(self, net, mynet, invoke, digits, tmp_path):
        text = {"data": "digits", "architecture": {"name": mynet}, "training": {"epochs": 1}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(text))
        assert "Checkpoint" in invoke("train", "own", "--catalogue", ".", "--out", "own.safetensors", "--allow-code")
        assert "--allow-code" in invoke("evaluate", "own.safetensors", *self.FAST)
        assert "Report" in invoke("evaluate", "own.safetensors", *self.FAST, "--allow-code")
        own = Recipe(name="own", data="digits", architecture={"name": mynet}, training={"epochs": 1})
        with pytest.raises(RobGIBError, match="recipe 'own' names the architecture"):
            load_recipe(own, digits)
        assert load_recipe(own.allowing_code(), digits)[0](digits.test.x[:2]).shape == (2, 10)

    def test_adding_says_what_loading_needs(self, net, mynet, invoke):
        said = " ".join(invoke("zoo", "add", "net.safetensors", "--name", "mine", "--arch", mynet).split())
        assert "and needs --allow-code" in said
        assert "robgib evaluate mine --catalogue zoo --allow-code" in said
        assert "names the architecture" in invoke("evaluate", "mine", *self.FAST, "--catalogue", "zoo")
        assert "Report" in invoke("evaluate", "mine", *self.FAST, "--catalogue", "zoo", "--allow-code")

    def test_plugins_that_were_given_are_known(self, net, digits, invoke, tmp_path):
        (tmp_path / "plug").mkdir()
        (tmp_path / "plug" / "plugged.py").write_text(
            "from robgib import register_architecture\nfrom robgib.models import build\n\n"
            "@register_architecture('plugged-in')\ndef plugged(shape, classes):\n"
            "    return build('mlp', shape, classes, {'hidden': [8]})\n"
        )
        self.name(net, {"name": "plugged-in"})
        assert "Report" in invoke("evaluate", "net.safetensors", *self.FAST, "--catalogue", "plug")
        (tmp_path / "plug" / "zoo" / "pluggroup").mkdir(parents=True)
        (tmp_path / "plug" / "zoo" / "pluggroup" / "plugged-net.yaml").write_text(
            RECIPE.replace("mlp, hidden: [8]", "plugged-in")
        )
        assert "plugged-net" in invoke("zoo", "train", "--group", "pluggroup", "--catalogue", "plug", "--quiet")

    @pytest.mark.parametrize("option", ["weights", "pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"])
    @pytest.mark.parametrize("library", ["torchvision:resnet18", "timm:resnet18"])
    def test_options_that_fetch_weights(self, library, option, net, tmp_path):
        self.name(net, {"name": library, option: "file"})
        with pytest.raises(RobGIBError, match=rf"net\.json: .*option '{option}' fetches weights; remove it"):
            load_checkpoint(net)
        text = yaml.safe_dump({"data": "digits", "architecture": {"name": library, option: "file"}})
        (tmp_path / "fetch.yaml").write_text(text)
        with pytest.raises(RobGIBError, match=r"fetch\.yaml: .*fetches weights"):
            find_recipe("fetch", [tmp_path])

    @pytest.mark.parametrize("architecture", ["mlp", ["mlp"], {"name": 3}])
    def test_records_that_are_no_records(self, architecture, net):
        self.name(net, architecture)
        with pytest.raises(RobGIBError, match="has no architecture with a name; correct or remove it"):
            load_checkpoint(net)


class TestNames:
    """A name becomes a file's in the cache, and stays there."""

    BAD = ["../../ESCAPED", "/tmp/ESCAPED", "a/b", "a\\b", "..", ".", "", "  ", "a\nb", "a\x00b", "C:b", "n" * 300]

    @pytest.mark.parametrize("name", BAD)
    def test_from_python(self, name, quick, digits, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        with pytest.raises(ValueError, match="it must"):
            Recipe(name=name, data="digits", architecture={"name": "mlp"})
        with pytest.raises(ValueError, match="it must"):
            Recipe(name="fine", group=name, data="digits", architecture={"name": "mlp"})
        renamed = quick.model_copy(update={"name": name})
        for use in (load_recipe, train_recipe):
            with pytest.raises(RobGIBError, match=r"model name .* cannot name a file: it must"):
                use(renamed, digits)
        assert not list(tmp_path.rglob("*.safetensors"))

    @pytest.mark.parametrize("name", ["../../ESCAPED", "", "other"])
    def test_a_recipe_is_called_as_its_file(self, name, tmp_path):
        (tmp_path / "quick.yaml").write_text(f"{RECIPE}name: {name!r}\n")
        with pytest.raises(RobGIBError, match=r"quick\.yaml, line 5: name: a recipe has the name of its file, 'quick'"):
            find_recipe("quick", [tmp_path])
        (tmp_path / "quick.yaml").write_text(f"{RECIPE}name: quick\n")
        assert find_recipe("quick", [tmp_path]).name == "quick"

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("group: ../x", "line 5: group: it must not contain a slash"),
            ("folder: /etc", "line 5: folder: extra inputs are not permitted"),
            ("allow_code: true", "line 5: allow_code: extra inputs are not permitted"),
        ],
    )
    def test_keys_of_a_recipe(self, key, message, tmp_path):
        (tmp_path / "quick.yaml").write_text(f"{RECIPE}{key}\n")
        with pytest.raises(RobGIBError, match=message):
            find_recipe("quick", [tmp_path])

    @pytest.mark.parametrize("url", ["https://x.org/a/..", "https://x.org/.", "https://x.org/a\\..\\b.pt"])
    def test_the_last_part_of_a_url(self, url, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
        checkpoint = {"url": url, "sha256": "0" * 64}
        (tmp_path / "far.yaml").write_text(yaml.safe_dump({"data": "digits", "checkpoint": checkpoint}))
        with pytest.raises(RobGIBError, match="the last part of the url becomes a file name; it must"):
            find_recipe("far", [tmp_path])
        forged = PretrainedWeights.model_construct(file=None, **checkpoint)
        recipe = Recipe.model_construct(name="far", data="digits", checkpoint=forged, folder=None)
        with pytest.raises(RobGIBError, match="download name"):
            stored_checkpoint(recipe)
        assert not (tmp_path / "cache").exists()


def test_brackets_in_a_file_are_text(invoke, tmp_path):
    text = "description: 'of [/nothing] and [bold]'\n" + RECIPE.replace("[8]}", "[8], activation: '[/x]'}")
    (tmp_path / "odd.yaml").write_text(text)
    listed = " ".join(invoke("zoo", "list", "--catalogue", ".").split())
    assert "[/nothing]" in listed
    assert "[/x]" in listed
    shown = invoke("zoo", "show", "odd", "--catalogue", ".")
    assert "of [/nothing] and [bold]" in shown
    assert "hidden: [8]" in shown


@pytest.mark.filterwarnings("default::robgib.RobGIBWarning")
def test_one_broken_recipe_leaves_the_others_usable(cli, tmp_path):
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "broken.yaml").write_text("data: digits\narchitecture: 7\n")
    (tmp_path / "zoo" / "whole.yaml").write_text("data: digits\narchitecture: {name: mlp, hidden: [8]}\n")
    done = cli("zoo", "list", "--catalogue", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout
    assert "warning: recipe skipped: " in done.stderr
    assert "broken.yaml, line 2" in done.stderr
    named = cli("train", "broken", "--catalogue", str(tmp_path))
    assert named.returncode == 2
    assert "broken.yaml, line 2" in named.stderr
