"""Built as a wheel and installed where the checkout cannot be seen, the project works from any folder."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("train", "datamodules", "models", "configs")
SMALL = ["trainer=smoke", "data.num_customers=200", "data.num_terminals=400", "data.windows_days=[1,7]"]

MINE = """\
# @package _global_
# An experiment of the user's own.
defaults:
  - override /data: fraud_simulated
  - override /model: mlp
name: mine
monitor: val/average_precision
model:
  width: 16
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and this environment's packages, but not its editable install of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # Packages are found below a folder that a .pth file names; .pth files in that folder are not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, cwd=folder)
    return interpreter


@pytest.fixture
def anywhere(tmp_path: Path) -> Path:
    """A working folder whose subfolders have the names of our packages."""
    folder = tmp_path / "somewhere"
    for name in ("models", "configs", "train"):
        (folder / name).mkdir(parents=True)
    return folder


def train(python: Path, folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(python), "-m", "train", *arguments],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    kinds = {".py", ".yaml"}
    wanted = {
        str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in kinds
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= held
    assert {name.partition("/")[0] for name in held} - set(PACKAGES) == {
        wheel.name.rpartition("-py3")[0] + ".dist-info"
    }


def test_the_checkout_cannot_be_seen(python: Path, anywhere: Path) -> None:
    show = "import train, configs; print(train.__file__, configs.__file__)"
    done = subprocess.run([str(python), "-c", show], cwd=anywhere, check=True, capture_output=True, text=True)
    assert all(path.startswith(str(python.parents[1])) for path in done.stdout.split())


def test_trains_from_any_folder(python: Path, anywhere: Path) -> None:
    printed = train(python, anywhere, "experiment=fraud", *SMALL)
    assert (anywhere / "runs" / "fraud" / "latest" / "result.json").exists(), printed
    assert "run folder" in printed


def test_config_dir_adds_an_experiment_of_the_users_own(python: Path, anywhere: Path) -> None:
    (anywhere / "mine" / "experiment").mkdir(parents=True)
    (anywhere / "mine" / "experiment" / "mine.yaml").write_text(MINE)
    listed = train(python, anywhere, "--config-dir", "mine")
    assert re.search(r"^  mine +An experiment of the user's own\.$", listed, re.M), listed
    printed = train(python, anywhere, "--config-dir", "mine", "experiment=mine", *SMALL)
    assert (anywhere / "runs" / "mine" / "latest" / "result.json").exists(), printed
