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
    environment = os.environ | SETTINGS | {"SEGKIT_EPOCHS": "60", "SEGKIT_CROPS_PER_EPOCH": "64",
                                           "OMP_NUM_THREADS": "1",
                                           "JUPYTER_CONFIG_DIR": str(folder / "config"),
                                           "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         "--LabApp.expose_app_in_browser=True",  # as window.jupyterapp
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
def page(lab):
    """A page of JupyterLab, on which one notebook is open at a time."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1600})
        page.goto(f"{lab[0]}/lab?reset")
        page.wait_for_function("window.jupyterapp", timeout=240_000)
        page.evaluate("jupyterapp.restored")
        yield page
        browser.close()


def open_notebook(page, name):
    """In place of the one that is open, whose kernel is shut down."""
    page.evaluate("""async path => {
        const [open] = jupyterapp.shell.widgets('main');
        await open?.context?.sessionContext.shutdown();
        const notebook = await jupyterapp.commands.execute('docmanager:open', {path, kernel: {name: 'python3'}});
        await Promise.all([notebook.revealed, notebook.context.sessionContext.ready]);
        open?.dispose();
    }""", f"notebooks/{name}.ipynb")
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=240_000)
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle", timeout=240_000)


def choose(page, menu, command):
    """Choose a command from a menu; one of the menu Run makes the kernel busy."""
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f"li[data-command='{command}']")
    if menu == "Run":
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=busy]", state="attached", timeout=20_000)


def wait_until_idle(page):
    """Until the kernel is done with the cells that it was given."""
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached", timeout=180_000)
    page.wait_for_timeout(500)


def run_all(page, name):
    """Open a notebook and run all its cells; return when the kernel is done with them."""
    open_notebook(page, name)
    choose(page, "Run", "runmenu:run-all")
    wait_until_idle(page)


def keep_screenshot(page, name):
    folder = ROOT / "artefacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def cell_with(page, text):
    """The code cell whose source holds this text."""
    return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea-editor", has_text=text)).first


def test_setup_runs_to_its_end_and_its_form_answers(lab, page):
    _, folder = lab
    run_all(page, "01_setup")
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


@pytest.fixture(scope="module")
def trained(lab, page):
    """The demo's run, trained by 03_training: watched, interrupted and resumed, then run to the notebook's end."""
    run = lab[1] / "runs" / "demo"
    open_notebook(page, "03_training")
    choose(page, "Run", "runmenu:run-all")
    for _ in range(240):
        if (run / "history.csv").is_file():  # an epoch is saved
            break
        page.wait_for_timeout(250)
    form, training = cell_with(page, "form = SettingsForm"), cell_with(page, "history = fit(")
    training.locator(".jp-InputArea-editor").click()  # what is far below is drawn once it is in view
    wait_for_another_picture(page, training, picture_of(page, training))
    keep_screenshot(page, "03_live")
    choose(page, "Kernel", "kernelmenu:interrupt")
    said = training.locator("text=/of 60 epochs are saved/")
    said.wait_for(timeout=240_000)
    wait_until_idle(page)  # the cells below it are given up
    keep_screenshot(page, "03_interrupted")
    saved = int(said.inner_text().split("interrupted: ")[1].split(" of")[0])
    epochs = form.locator("input[type=number]").first
    epochs.fill(str(saved + 1))
    epochs.press("Enter")
    form.locator("input[type=checkbox]").first.check()  # RESUME
    page.wait_for_timeout(500)
    training.locator(".jp-InputArea-editor").click()
    choose(page, "Run", "notebook:run-all-below")
    wait_until_idle(page)
    return saved, (run / "run.log").read_text()


def test_a_training_is_watched_interrupted_and_resumed(page, trained):
    saved, said = trained
    assert saved >= 1
    before, resumed = said.split(f"resumed after epoch {saved}")
    assert "finished: validation Dice" in resumed
    assert "finished" not in before
    assert page.locator(ERRORS).all_inner_texts() == []
    below = cell_with(page, "best epoch:").locator(".jp-OutputArea").inner_text()
    assert f"of {saved + 1}" in below  # the cells below the training ran too


@pytest.mark.parametrize("name", ["02_data_exploration", "04_inference"])
def test_its_sliders_change_the_picture(page, trained, name):
    run_all(page, name)
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


def test_a_link_is_corrected_in_the_browser(lab, page, trained):
    run_all(page, "05_tracking")
    assert page.locator(ERRORS).all_inner_texts() == []
    cell = cell_with(page, "link_editor(frames")
    before = picture_of(page, cell)
    cell.get_by_label("cell", exact=True).select_option(index=1)
    wait_for_another_picture(page, cell, before)
    cell.get_by_label("becomes").select_option(label="nothing")
    cell.get_by_label("and").select_option(label="nothing")
    cell.get_by_text("Save link").click()
    cell.locator("text=/saved in links.csv/").wait_for(timeout=240_000)
    assert (lab[1] / "runs/demo/links.csv").is_file()
    keep_screenshot(page, "05_editor")


def test_growth_runs_to_its_end(page, trained):
    run_all(page, "06_growth")
    assert page.locator(ERRORS).all_inner_texts() == []
    cell_with(page, "show_rates(growth)").scroll_into_view_if_needed()
    keep_screenshot(page, "06_run")
