"""A person's way: JupyterLab in a real browser, a notebook run to its end. Skipped where no Chromium is installed."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.notebook_settings import SETTINGS

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on loopback that serves a copy of the project, so that nothing here is changed."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    (folder / "tests").mkdir()
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "page_config.json").write_text(
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    shutil.copytree(ROOT / "tests" / "fixture", folder / "tests" / "fixture")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # one thread: with two, each waits for the other wherever the browser has taken its core
    environment = os.environ | SETTINGS | {"SEGKIT_EPOCHS": "4", "OMP_NUM_THREADS": "1",
                                           "JUPYTER_CONFIG_DIR": str(folder / "config"),
                                           "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}",
         "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/api", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    else:
        server.kill()
        pytest.fail("JupyterLab did not start within a minute")
    yield url, folder
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1300, "height": 1600})
        browser.close()


def run_all(page, url, name):
    """Open a notebook and run all its cells; return when the kernel is done with them."""
    page.goto(f"{url}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_timeout(1500)
    if page.locator(".jp-Dialog").count():  # which kernel?
        page.click(".jp-Dialog button.jp-mod-accept")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=60_000)
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click("li[data-command='runmenu:run-all']")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=busy]", state="attached", timeout=20_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached", timeout=180_000)
    page.wait_for_timeout(1000)


def keep_screenshot(page, name):
    folder = ROOT / "artefacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def cell_with(page, text):
    """The code cell whose source holds this text."""
    return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea-editor", has_text=text)).first


def test_setup_runs_to_its_end_and_its_form_answers(lab, page):
    url, folder = lab
    run_all(page, url, "01_setup")
    keep_screenshot(page, "01_run")
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    field = cell_with(page, "form = SettingsForm").locator(".widget-text input").first
    field.scroll_into_view_if_needed()
    field.fill("/nowhere")
    field.press("Enter")
    page.wait_for_selector("text=/DATASET_PATH .nowhere is not there/", timeout=20_000)
    keep_screenshot(page, "01_wrong_path")
    field.fill("tests/fixture")
    field.press("Enter")
    page.wait_for_selector("text=✓ 72 images, 72 with masks", timeout=20_000)
    assert page.locator("text=/nowhere is not there/").count() == 0
    page.click("button:has-text('Save')")
    page.wait_for_selector("text=are saved in segkit.json", timeout=20_000)
    keep_screenshot(page, "01_saved")
    assert (folder / "segkit.json").is_file()
    (folder / "segkit.json").unlink()


def contrast(page, element):
    """Between the colour of an element's text and what is behind it, as WCAG defines it (1 to 21)."""
    return element.evaluate("""element => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        let behind = element;
        while (behind.parentElement && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
            behind = behind.parentElement;
        const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }""")


def test_the_form_can_be_read_in_the_light_and_in_the_dark(lab, page):
    said = page.locator("text=✓ 72 images, 72 with masks").last
    assert contrast(page, said) >= 4.5
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.hover(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Dark')")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached", timeout=30_000)
    page.wait_for_timeout(1000)
    said.scroll_into_view_if_needed()
    keep_screenshot(page, "01_dark")
    assert contrast(page, said) >= 4.5
    assert contrast(page, page.locator(".jp-OutputArea .widget-text label").first) >= 4.5
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.hover(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(".lm-Menu-itemLabel:text-is('JupyterLab Light')")


ERRORS = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], " \
         ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"


def picture_of(page, cell):
    """What the picture of a widget shows now: its blob's content as a number that changes with it."""
    image = cell.locator("img").last
    image.scroll_into_view_if_needed()
    return image.evaluate("""async image => {
        const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
        return bytes.reduce((sum, byte, i) => (sum * 31 + byte) % 1000000007, 7);
    }""")


def wait_for_another_picture(page, cell, before, seconds=60):
    for _ in range(seconds * 4):
        if picture_of(page, cell) != before:
            return
        page.wait_for_timeout(250)
    pytest.fail("the picture did not change")


def run_cell(page, cell):
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")


@pytest.fixture(scope="module")
def trained(lab, page):
    """The demo's run, trained by 03_training in the browser."""
    run_all(page, lab[0], "03_training")
    assert page.locator(ERRORS).all_inner_texts() == []


def test_a_training_is_watched_interrupted_and_resumed(lab, page, trained):
    url, folder = lab
    if "03_training" not in page.url:
        run_all(page, url, "03_training")
    form, training = cell_with(page, "form = SettingsForm"), cell_with(page, "history = fit(")
    epochs = form.locator("input[type=number]").first
    epochs.fill("60")
    epochs.press("Enter")
    page.wait_for_timeout(500)
    run_cell(page, training)
    page.wait_for_timeout(6000)
    before = picture_of(page, training)
    wait_for_another_picture(page, training, before)
    keep_screenshot(page, "03_live")
    page.click(".lm-MenuBar-itemLabel:text-is('Kernel')")
    page.click("li[data-command='kernelmenu:interrupt']")
    said = training.locator("text=/of 60 epochs are saved/")
    said.wait_for(timeout=60_000)
    keep_screenshot(page, "03_interrupted")
    saved = int(said.inner_text().split("interrupted: ")[1].split(" of")[0])
    assert saved >= 1
    epochs.fill(str(saved + 5))  # a student that 04_inference has no warning about
    epochs.press("Enter")
    form.locator("input[type=checkbox]").first.check()  # RESUME
    page.wait_for_timeout(500)
    run_cell(page, training)
    log = folder / "runs" / "demo" / "run.log"
    for _ in range(240):
        if "finished: validation Dice" in log.read_text().split(f"resumed after epoch {saved}")[-1]:
            break
        page.wait_for_timeout(500)
    assert f"resumed after epoch {saved}" in log.read_text()
    assert "finished: validation Dice" in log.read_text().split(f"resumed after epoch {saved}")[-1]
    page.wait_for_timeout(1000)
    assert page.locator(ERRORS).all_inner_texts() == []


@pytest.mark.parametrize("name", ["02_data_exploration", "04_inference"])
def test_its_sliders_change_the_picture(lab, page, trained, name):
    url, _ = lab
    run_all(page, url, name)
    assert page.locator(ERRORS).all_inner_texts() == []
    cell = cell_with(page, "browser(dataset")
    before = picture_of(page, cell)
    handle = cell.locator(".noUi-handle").first
    handle.focus()
    page.keyboard.press("ArrowRight")
    wait_for_another_picture(page, cell, before)
    before = picture_of(page, cell)
    cell.locator("input[type=checkbox]").first.click()
    wait_for_another_picture(page, cell, before)
    keep_screenshot(page, f"{name[:2]}_browser")


def test_growth_runs_to_its_end(lab, page):
    url, _ = lab
    run_all(page, url, "05_growth")
    assert page.locator(ERRORS).all_inner_texts() == []
    cell_with(page, "show_rates(growth)").scroll_into_view_if_needed()
    keep_screenshot(page, "05_run")
