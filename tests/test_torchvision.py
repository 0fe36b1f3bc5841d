import subprocess
import sys


def test_torchvision_imports_beside_any_torch_build():
    from robgib._torchvision import torchvision

    assert torchvision.models.resnet18(num_classes=3) is not None
    assert hasattr(torchvision.datasets, "FashionMNIST")


def test_it_is_imported_in_one_place_only():
    from pathlib import Path

    import robgib

    folder = Path(robgib.__file__).parent
    users = [
        p.name for p in folder.rglob("*.py") if "import torchvision" in p.read_text() and p.name != "_torchvision.py"
    ]
    assert all("from robgib._torchvision import torchvision" in (folder / n).read_text() for n in users)


def test_importing_robgib_does_not_wait_for_torchvision():
    code = "import sys, robgib; sys.exit('torchvision' in sys.modules or 'torchattacks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
