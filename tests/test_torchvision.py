import re
import subprocess
import sys


def test_torchvision_imports_beside_any_torch_build():
    from robgib._torchvision import load_torchvision

    torchvision = load_torchvision()

    assert torchvision.models.resnet18(num_classes=3) is not None
    assert hasattr(torchvision.datasets, "FashionMNIST")


def test_it_is_imported_in_one_place_only():
    from pathlib import Path

    import robgib

    folder = Path(robgib.__file__).parent
    statement = re.compile(r"^\s*(import|from) torchvision\b|import_module\(.torchvision", re.MULTILINE)
    users = [p.name for p in folder.rglob("*.py") if statement.search(p.read_text(encoding="utf-8"))]
    assert users == ["_torchvision.py"]


def test_importing_robgib_does_not_wait_for_torchvision():
    code = "import sys, robgib; sys.exit('torchvision' in sys.modules or 'torchattacks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
