"""A run in a real TensorBoard, read off a real browser: what a person sees is what the run recorded.

Needs Debian's packages chromium and chromium-driver; the driver speaks WebDriver, which is JSON over HTTP.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs a browser: apt-get install chromium chromium-driver",
    ),
]

EPOCHS = 3
SECONDS = 90  # longest wait for a page
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1600,1200"]

# TensorBoard's pages are trees of shadow roots, which neither --dump-dom nor innerText looks into.
WALK = """
const found = [];
const walk = (node) => {
  if (['STYLE', 'SCRIPT', 'NOSCRIPT', 'TEMPLATE'].includes(node.nodeName)) return;
  const item = keep(node);
  if (item) found.push(item);
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
"""
TEXTS = f"const keep = n => n.nodeType === 3 && n.textContent.trim();{WALK}walk(document.body); return found;"
PLOTS = f"""
const keep = n => {{
  if (!(n.nodeType === 1 && n.matches('.line-plot'))) return null;
  const box = n.getBoundingClientRect();
  return box.width > 100 && [box.x + box.width * 0.9, box.y + box.height / 2];
}};{WALK}walk(document.body); return found;"""


def ask(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """The JSON that a loopback server answers."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(
        Request(url, data=data, method=method, headers={"Content-Type": "application/json"}), timeout=60
    ) as it:
        return json.load(it)


@contextmanager
def server(command: list[str], address: str) -> Iterator[str]:
    """Start a program that prints where it listens; give group 1 of `address` in what it prints, stop it at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if found := re.search(address, line):
                yield found[1]
                return
        raise AssertionError(f"{command[0]} did not start:\n{printed}")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()  # type: ignore[union-attr]


class Browser:
    """A page of a headless Chromium."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self.page = f"{driver}/session/{ask(f'{driver}/session', wanted)['value']['sessionId']}"

    def open(self, url: str) -> None:
        ask(f"{self.page}/url", {"url": "about:blank"})  # TensorBoard does not reload for another #fragment
        ask(f"{self.page}/url", {"url": url})

    def run(self, script: str) -> Any:
        return ask(f"{self.page}/execute/sync", {"script": script, "args": []})["value"]

    def hover(self, x: float, y: float) -> None:
        moves = [{"type": "pointerMove", "x": int(x) + dx, "y": int(y), "duration": 50} for dx in (-30, 0)]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        ask(f"{self.page}/actions", {"actions": [mouse]})

    def until(self, is_there: Callable[[list[str]], bool], act: Callable[[], object] = lambda: None) -> list[str]:
        """The texts of the page as soon as `is_there` says so of them; `act` is done before each look."""
        end, texts = time.monotonic() + SECONDS, []
        while time.monotonic() < end:
            act()
            texts = self.run(TEXTS)
            if is_there(texts):
                return texts
            time.sleep(0.5)
        pytest.fail(f"not on the page after {SECONDS} s; what was there: {texts}")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, trained through the command line."""
    folder = tmp_path_factory.mktemp("tensorboard")
    small = ["data.num_customers=200", "data.num_terminals=400", "data.windows_days=[1,7]", "model.width=32"]
    more = ["trainer=cpu", f"trainer.max_epochs={EPOCHS}", "baselines=none", "run_id=shown", f"output_dir={folder}"]
    command = [sys.executable, "-m", "train", "experiment=fraud", *small, *more]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "fraud" / "shown"


@pytest.fixture(scope="module")
def tensorboard(run_folder: Path) -> Iterator[str]:
    """Address of a TensorBoard that shows the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_folder), "--host", "127.0.0.1"]
    with server([*command, "--port", "0"], r" at (http://127\.0\.0\.1:\d+)/") as address:
        end = time.monotonic() + SECONDS
        while not ask(f"{address}/data/runs") and time.monotonic() < end:
            time.sleep(0.5)
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with server(["chromedriver", "--port=0"], r"started successfully on port (\d+)") as port:
        page = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
        yield page
        ask(page.page, method="DELETE")


@pytest.fixture(scope="module")
def metrics(run_folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run_folder / "result.json").read_text())["metrics"]
    return found


def points(tensorboard: str, tag: str) -> list[tuple[float, int, float]]:
    (run,) = ask(f"{tensorboard}/data/runs")
    found: list[tuple[float, int, float]] = ask(
        f"{tensorboard}/data/plugin/scalars/scalars?run={quote(run, safe='')}&tag={quote(tag, safe='')}"
    )
    return found


def test_every_page_of_a_run_has_something_to_show(tensorboard: str) -> None:
    pages = ask(f"{tensorboard}/data/plugins_listing")
    shown = {name for name, page in pages.items() if page["enabled"]}
    assert {"scalars", "hparams", "images", "text", "pr_curves", "graphs"} <= shown


@pytest.mark.parametrize("tag", ["val/average_precision", "train/loss"])
def test_scalars_show_the_values_of_the_run(tensorboard: str, browser: Browser, tag: str) -> None:
    recorded = points(tensorboard, tag)
    assert len(recorded) >= EPOCHS
    steps = [step for _, step, _ in recorded]
    assert steps == sorted(set(steps))
    browser.open(f"{tensorboard}/#scalars&tagFilter={quote(tag, safe='')}&_smoothingWeight=0")

    def hover_over_the_end() -> None:
        if plots := browser.run(PLOTS):
            browser.hover(*plots[0])

    texts = browser.until(
        lambda texts: "Smoothed" in texts and len(texts) - texts.index("Smoothed") > 8, hover_over_the_end
    )
    tooltip = texts[texts.index("Smoothed") :]
    shown = [number for text in tooltip for number in re.findall(r"^-?\d[\d.e+-]*$", text)]
    values, chosen = [float(f"{value:.4g}") for _, _, value in recorded], [float(number) for number in shown[:3]]
    assert chosen[1] in values
    assert int(chosen[2]) in steps
    assert steps[values.index(chosen[1])] == int(chosen[2])


def test_hparams_show_the_hyperparameters_and_final_metrics(
    tensorboard: str, browser: Browser, metrics: dict[str, float]
) -> None:
    browser.open(f"{tensorboard}/#hparams")
    final = {value_as_shown(value) for name, value in metrics.items() if value_as_shown(value) != "0.0000"}
    texts = browser.until(lambda texts: bool(final & set(texts)))
    assert "model/width" in texts
    assert "val/average_precision" in texts or "test/average_precision" in texts
    assert (
        value_as_shown(metrics["val/average_precision"]) in texts
        or value_as_shown(metrics["test/average_precision"]) in texts
    )


def value_as_shown(value: float) -> str:
    """A number as the table of hyperparameters prints it: five significant digits."""
    return f"{value:#.5g}"
