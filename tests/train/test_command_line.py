"""`python -m train` as a user with a folder of his own meets it; a stub stands for `train.run`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent / "user_home"
ROOT = Path(__file__).parents[2]
TOY = ("experiment=toy", "trainer=toy", "--config-dir", str(HOME))

REPORT_TORCH = """
import atexit, sys
atexit.register(lambda: print("torch imported:", "torch" in sys.modules, file=sys.stderr))
"""


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in `cwd`, which is not the checkout."""
    path = os.pathsep.join([str(cwd), str(HOME), str(ROOT)])
    clean = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{REPORT_TORCH}\nimport runpy; runpy.run_module('train', run_name='__main__')",
            *arguments,
        ],
        cwd=cwd,
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def message(result: subprocess.CompletedProcess[str]) -> str:
    """What a user reads on stderr, after checking that it is neither a traceback nor cost an import of torch."""
    assert "Traceback" not in result.stderr
    text, _, torch = result.stderr.rpartition("torch imported: ")
    assert torch.strip() == "False"
    return text


def test_bare_command_lists_experiments_with_their_first_comment_line(tmp_path: Path) -> None:
    result = train("--config-dir", str(HOME), cwd=tmp_path)
    assert result.returncode == 0
    assert message(result) == ""
    listed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("  "))
    assert listed["toy"] == "A toy of the user's own."
    assert {"fraud", "text"} < listed.keys()
    assert "python -m train experiment=" in result.stdout


def test_bare_command_with_a_missing_config_dir_says_so(tmp_path: Path) -> None:
    result = train("--config-dir", "nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert message(result) == "--config-dir: no folder 'nowhere'\n"


def test_help_is_one_screen_and_imports_no_torch(tmp_path: Path) -> None:
    result = train("--help", "--config-dir", str(HOME), cwd=tmp_path)
    assert result.returncode == 0
    assert message(result) == ""
    assert "  trainer      auto, cpu, ddp, fsdp, smoke, toy\n" in result.stdout
    assert len(result.stdout.splitlines()) <= 45
    assert not list(tmp_path.iterdir())


def test_cfg_job_prints_the_config_and_imports_no_torch(tmp_path: Path) -> None:
    result = train(*TOY, "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0
    assert message(result) == ""
    assert "_target_: toy.Model" in result.stdout


def test_a_run_leaves_no_files_of_hydra_and_gives_the_environment_back(tmp_path: Path) -> None:
    result = train(*TOY, cwd=tmp_path)
    assert result.returncode == 0
    assert message(result).splitlines() == ["a warning"]
    assert result.stdout == "ran width=8 HYDRA_FULL_ERROR=None\n"
    assert not list(tmp_path.iterdir())


def test_config_dir_may_be_relative(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(HOME)
    result = train("experiment=toy", "trainer=toy", "--config-dir", "mine", cwd=tmp_path)
    assert (result.returncode, message(result)) == (0, "a warning\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment=ty"], ["experiment: ty\n", "did you mean 'toy'?", "from the override 'experiment=ty'"]),
        (["experiment=lost"], ["model: tou\n", "did you mean 'toy'?", "from experiment/lost.yaml"]),
        (["seed=1"], ["experiment\n", "is missing: add experiment=NAME"]),
        (["model.lr=1"], ["model.lr: 1\n", "has no keys before a file is chosen: model=NAME or experiment=NAME"]),
        ([*TOY, "model.lr=="], ["model.lr==\n", "is not KEY=VALUE"]),
        ([*TOY, "model=null"], ["model=null: a group of the config takes the name of a file"]),
        ([*TOY, "+model.lr=1"], ["An item is already at 'model.lr'"]),
        ([*TOY, "~model.no"], ["no key 'no' in model"]),
        ([*TOY, "seed=1,2"], ["Ambiguous value for argument 'seed=1,2'"]),
        ([*TOY, "model.lr=1,2", "modle=x", "--multirun"], ["Could not override 'modle'"]),
        ([*TOY, "--config-name", "trian"], ["trian\n", "there is no such file in configs/ or --config-dir"]),
    ],
)
def test_what_hydra_refuses_is_told_in_words(tmp_path: Path, arguments: list[str], told: list[str]) -> None:
    result = train("--config-dir", str(HOME), *arguments, cwd=tmp_path)
    assert result.returncode == 2
    for words in told:
        assert words in message(result)


@pytest.mark.parametrize(("text", "line"), [("a: [1,\nb: }\n", 2), ("\ta: 1\n", 1), ("a: 1\na: 2\n", 2)])
def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    result = train("--config-dir", str(tmp_path), "experiment=mine", cwd=tmp_path)
    assert result.returncode == 2
    told = f"  {tmp_path}/experiment/mine.yaml, line {line}\n    is no YAML: "
    assert told in message(result)
    assert told in message(train("--config-dir", str(tmp_path), "experiment=mine", "trainer=cpo", cwd=tmp_path))


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"name: mine\n# caf\xe9\n")
    for asked in (["experiment=mine"], []):
        result = train("--config-dir", str(tmp_path), *asked, cwd=tmp_path)
        assert result.returncode == 2
        assert f"  {tmp_path}/experiment/mine.yaml, line 2\n    is not UTF-8: byte 0xe9" in message(result)


def test_all_unknown_keys_are_told_at_once(tmp_path: Path) -> None:
    result = train(*TOY, "model.dropuot=0.1", "trainr.devices=2", "sede=1", "model.width=16", cwd=tmp_path)
    assert result.returncode == 2
    text = message(result)
    assert text.startswith("Configuration: 3 errors.\n")
    assert "model.dropuot: 0.1\n    no key 'dropuot' in model; did you mean 'dropout'?" in text
    assert "no key 'trainr' in the configuration; did you mean 'trainer'?" in text
    assert "did you mean 'seed'?\n    from the override 'sede=1'" in text


def test_signature_errors_are_told_at_once_with_their_origins(tmp_path: Path) -> None:
    result = train(*TOY, "model=misspelled", "+data.size=3", "model.width=0", "trainer.max_epochs=many", cwd=tmp_path)
    assert result.returncode == 2
    text = message(result)
    file = f"from {HOME}/model/misspelled.yaml"
    assert text.startswith("Configuration: 7 errors.\n")
    assert f"model.dropuot: 0.1\n    is not a parameter of toy.Model; did you mean 'dropout'?\n    {file}" in text
    assert (
        f"model.lr: '${{no.such.key}}'\n    cannot be resolved: Interpolation key 'no.such.key' not found\n    {file}"
        in text
    )
    assert f"model.schedule: ???\n    has no value; give it one in a yaml file or as an override\n    {file}" in text
    assert f"model.dropout\n    is missing: toy.Model needs it\n    {file}" in text
    assert (
        "data.size: 3\n    is not a parameter of toy.Data; did you mean 'sizes'?\n    from the override '+data.size=3'"
        in text
    )
    assert "model.width: 0\n    must be greater than or equal to 1\n    from the override 'model.width=0'" in text
    assert "trainer.max_epochs: 'many'\n    must be a valid integer" in text


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["data.path=nowhere"], 4, "data.path: no file 'nowhere'\n"),
        (["data.path=diverge"], 5, "training: the loss is nan at step 7\n"),
        (["data.path=ctrl-c"], 130, "Interrupted. Go on with:\n  python -m train run_id=7\n"),
        (['data.path="lightning\'s ctrl-c"'], 130, "Interrupted. Go on with:\n  python -m train run_id=7\n"),
        (["data.path=nms"], 2, "do not belong together, so that pytorch_lightning cannot be imported.\n"),
        (["model.width=13"], 2, "model: width: must not be 13, which brings bad luck\n"),
    ],
)
def test_what_ends_a_run_has_its_own_exit_code(tmp_path: Path, arguments: list[str], code: int, told: str) -> None:
    result = train(*TOY, *arguments, cwd=tmp_path)
    assert result.returncode == code
    assert told in message(result)


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    result = train(*TOY, "data.path=defect", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "KeyError: 'a defect'" in result.stderr


@pytest.mark.parametrize("argument", ["experiment=nothing", "model.width=0", "data.path=nowhere"])
def test_hydra_full_error_shows_the_traceback(tmp_path: Path, argument: str) -> None:
    result = train(*TOY, argument, cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_the_warning_signal_of_slurm_does_not_kill_a_task_that_is_still_importing(tmp_path: Path) -> None:
    result = train(*TOY, "data.path=sigusr1", cwd=tmp_path)
    assert (result.returncode, message(result)) == (0, "a warning\n")


def test_multirun_runs_every_job_and_reports_the_one_that_fails(tmp_path: Path) -> None:
    result = train(*TOY, "--multirun", "model.width=1,13,3", cwd=tmp_path)
    assert result.returncode == 2
    assert "model: width: must not be 13" in message(result)
    assert [line for line in result.stdout.splitlines() if line.startswith("ran")] == [
        f"ran width={width} HYDRA_FULL_ERROR=None" for width in (1, 3)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
