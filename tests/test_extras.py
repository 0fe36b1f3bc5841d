"""What is installed with RobGIB, what is an extra, and what works without any."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robgib
from robgib import RobGIBError, make_attack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
EXTRAS = (
    "torchattacks", "requests", "urllib3", "foolbox", "art", "zuko", "ray", "timm", "transformers", "mlflow",
    "tensorboard", "robustbench", "onnx", "onnx2torch",
)  # fmt: skip


def names(requirements):
    return [re.match(r"[\w-]+", line)[0] for line in requirements]


def test_a_module_imports_declared_dependencies_alone():
    """What an extra adds is imported where it is used."""
    declared = {IMPORTED_AS.get(name, name) for name in names(PROJECT["dependencies"])}
    known = declared | set(sys.stdlib_module_names) | {"robgib"}
    for path in Path(robgib.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in found} <= known, path


def test_attack_libraries_are_extras():
    extras = PROJECT["optional-dependencies"]
    for name in ("torchattacks", "foolbox", "adversarial-robustness-toolbox"):
        assert name not in names(PROJECT["dependencies"])
        assert name in names(extras["test"])
    assert names(extras["torchattacks"]) == ["torchattacks"]
    assert '".[torchattacks]"' in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_without_torchattacks_its_attacks_name_the_line_that_adds_it(monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchattacks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(RobGIBError, match=r'torchattacks is not installed .*`pip install "robgib\[torchattacks\]"`'):
        make_attack("torchattacks:PGD")
    assert make_attack("pgd-linf").threat.norm == "linf"


def test_every_install_line_in_a_message_names_an_extra_and_is_quoted():
    """An unquoted one is a pattern of file names to some shells."""
    found = 0
    for path in [*Path(robgib.__file__).parent.rglob("*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        for quote, extra in re.findall(r"pip install (\W?)robgib\[(\w+)\]", path.read_text(encoding="utf-8")):
            assert quote in ("'", '"'), path
            assert extra in PROJECT["optional-dependencies"], path
            found += 1
    assert found > 10


def test_readme_takes_torch_and_torchvision_of_one_index():
    """torchvision of another index than torch's cannot be imported."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"pip install (.*) --index-url https://download\.pytorch\.org/whl/cpu", text)
    bounds = [d.partition(",")[2] for d in PROJECT["dependencies"] if d.startswith(("torch>", "torchvision>"))]
    assert line == f'"torch{bounds[0]}" "torchvision{bounds[1]}"'


BARE = """
import sys
sys.modules.update(dict.fromkeys({extras!r}))
import json, robgib
model, data = robgib.load_model("digits-cnn")
run = robgib.evaluate(
    model, data, attacks=["pgd-linf:eps=0.1,steps=3"], estimators=["binned"], samples=20, information_samples=100,
    signs=False, corruptions=False, progress=False,
)
print(json.dumps([run.robustness["status"].item(), len(run.layers)]))
"""


def test_it_imports_and_evaluates_without_any_extra(digits_cnn, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(extras=EXTRAS)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    status, layers = json.loads(done.stdout.splitlines()[-1])
    assert status == "ok"
    assert layers > 0
