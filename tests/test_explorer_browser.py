"""The explorer in a real browser: a running JupyterLab, and the static file with no network.

Needs Chromium and its driver (``make browser``) and is skipped without them. Screenshots are left in build/explorer.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.explorer import Change, Explorer
from laser_lab.explorer.answers import DOCUMENTS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "build" / "explorer"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1500,1700"
).split()
TASK = RetrievalTask(
    "tiny",
    {"q1": "why is the sky blue", "q2": "sea", "q3": "rain and snow"},
    {f"d{i}": text for i, text in enumerate(
        ["light scatters", "water water", "snow", "green sea light", "long question", "the sky", "blue", "because rain",
         "not very", "or a sea", "is it", "why not", "sky blue sky", "and snow and rain"])},
    {"q1": {"d5": 1}, "q2": {"d3": 1, "d9": 1}},
)  # fmt: skip
CELL = """
import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
ll.explore(ll.load({folder!r}, device="cpu"), RetrievalTask(**{task!r}), show_progress_bar=False)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver here: make browser installs them on Debian, as root")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    SHOTS.mkdir(parents=True, exist_ok=True)
    yield driver
    driver.quit()


class Page:
    """The explorer as a reader sees and uses it."""

    def __init__(self, browser):
        self.browser = browser

    def find(self, selector):
        return self.browser.find_element("css selector", f".laser-explorer {selector}")

    def all(self, selector):
        return self.browser.find_elements("css selector", f".laser-explorer {selector}")

    def ranking(self, part="ranking"):
        """{document: rank} as the list says."""
        script = "return [...document.querySelectorAll(arguments[0])].map(n => [n.dataset.doc, Number(n.dataset.rank)])"
        return dict(self.browser.execute_script(script, f".laser-explorer .le-{part} li"))

    def type(self, query):
        box = self.find(".le-query")
        box.clear()
        box.send_keys(query, "\ue007")  # Enter

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def until(self, condition, what, seconds=60):
        from selenium.common.exceptions import WebDriverException  # not there yet, not shown yet, drawn anew

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass
            time.sleep(0.05)
        self.shot("failed")
        raise AssertionError(f"waited {seconds} s for {what}")

    def focus(self, selector):
        self.browser.execute_script("arguments[0].focus({focusVisible: true})", self.find(selector))

    def set(self, selector, value):
        """As if pasted: quick for long texts."""
        self.browser.execute_script("arguments[0].value = arguments[1]", self.find(selector), value)

    def choose(self, selector, text):
        from selenium.webdriver.support.select import Select

        Select(self.find(selector)).select_by_visible_text(text)

    def shot(self, name):
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def errors(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def expected(explorer, query, k, change=None):
    """{document: rank} that the list should show."""
    documents = explorer.answer(query, change)["documents"]
    return {d["id"]: d["ranks"][k - 1] for d in documents if d["ranks"][k - 1] <= DOCUMENTS or d["relevant"]}


@pytest.fixture(scope="module")
def explorer(tiny_folder):
    return Explorer(ll.load(tiny_folder, device="cpu"), TASK)


# -- in JupyterLab -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tiny_folder, tmp_path_factory):
    """A JupyterLab of its own on a free port, with a notebook that shows the explorer."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "work").mkdir()
    task = {"name": TASK.name, "queries": TASK.queries, "corpus": TASK.corpus, "qrels": TASK.qrels}
    code = CELL.format(folder=tiny_folder, task=task)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "work" / "explorer.ipynb")
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder / 'work'}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/api/status", timeout=5).close()
                    break
                except OSError as error:
                    if server.poll() is not None or time.monotonic() > deadline:
                        output = (folder / "log").read_text()[-3000:]
                        raise AssertionError(f"JupyterLab did not start:\n{output}") from error
                    time.sleep(0.2)
            yield url
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()  # a kernel without its server ends by itself


@pytest.fixture(scope="module")
def page(browser, lab):
    browser.get(f"{lab}/lab/tree/explorer.ipynb")
    from selenium.webdriver import ActionChains, Keys

    page = Page(browser)

    def run():
        """Run the cell as a reader does; JupyterLab forgets it as long as the kernel is not there."""
        cell = browser.find_element("css selector", ".jp-Notebook .jp-CodeCell")
        if "*" in (prompt := cell.find_element("css selector", ".jp-InputPrompt").text) or "1" in prompt:
            return True
        cell.find_element("css selector", ".cm-content").click()
        ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
        time.sleep(0.5)

    page.until(run, "the cell to run", 120)
    page.until(lambda: page.ranking(), "the explorer", 120)
    return page


def test_ask_move_and_change(page, explorer):
    first = TASK.queries["q1"]
    assert page.find(".le-query").get_attribute("value") == first
    assert page.ranking() == expected(explorer, first, 3), "the first example at the model's own K"

    page.type("rain and snow")
    page.until(lambda: page.ranking() == expected(explorer, "rain and snow", 3), "the ranking of the typed query")
    page.all(".le-examples button")[1].click()
    page.until(lambda: page.ranking() == expected(explorer, "sea", 3), "the ranking of the example")
    assert [n.get_attribute("data-doc") for n in page.all(".le-ranking li.le-relevant")] == [
        d for d in sorted(("d3", "d9"), key=expected(explorer, "sea", 3).get)
    ]

    page.focus(".le-k")
    for k, key in [(4, "\ue014"), (5, "\ue014"), (8, "\ue010"), (1, "\ue011"), (2, "\ue014"), (3, "\ue014")]:
        page.keys(key)  # right, right, End, Home, right, right
        assert page.find(".le-k-shown").text == str(k)
        assert page.ranking() == expected(explorer, "sea", k)

    plain = page.ranking()
    assert not page.all(".le-ranking-changed")
    page.choose(".le-step", "1")
    page.choose(".le-kind", "the token")
    page.find(".le-value").send_keys("snow")
    page.find(".le-apply").click()
    changed = expected(explorer, "sea", 3, Change(1, "token", "snow"))
    page.until(lambda: page.ranking("ranking-changed") == changed, "the changed ranking")
    assert page.ranking() == plain != changed, "the original stays beside it"
    assert "soft token 1 → the token “snow”: at K = 3 the relevant document" in page.find(".le-effect").text
    page.focus(".le-k")
    page.keys("\ue011")
    assert "at K = 1 nothing changes" in page.find(".le-effect").text
    assert page.ranking() == page.ranking("ranking-changed")
    page.keys("\ue010")
    assert page.ranking("ranking-changed") == expected(explorer, "sea", 8, Change(1, "token", "snow"))

    for kind, name, value in [
        ("query", "the thought of another query", "rain and snow"),
        ("noise", "noise", "7"),
        ("mean", "the mean thought", ""),
        ("knock-out", "nothing (knocked out)", ""),
    ]:
        page.choose(".le-step", "2")
        page.choose(".le-kind", name)
        assert page.find(".le-value").is_displayed() == bool(value)
        if value:
            page.set(".le-value", value)
        page.find(".le-apply").click()
        change = Change(2, kind, value)
        page.until(lambda c=change: page.find(".le-effect").text.startswith(c.label), change.label)
        assert page.ranking("ranking-changed") == expected(explorer, "sea", 8, change)
    page.find(".le-reset").click()
    assert not page.all(".le-ranking-changed") and page.find(".le-effect").text == ""


def test_keyboard_in_jupyterlab(page, explorer):
    """Keys reach the explorer, not the notebook around it, and every control is reached by Tab."""
    page.type("sea")
    page.until(lambda: page.ranking() == expected(explorer, "sea", int(page.find(".le-k-shown").text)), "the answer")
    cells = "return window.jupyterapp.shell.currentWidget.content.widgets.length"
    page.focus(".le-heat td")
    page.keys("\ue015", "\ue014", "\ue014")  # down, right, right
    active = page.browser.switch_to.active_element
    assert active.get_attribute("data-key") == "as thought 1 2"
    page.keys("\ue007")  # Enter: take this token for an intervention
    active = page.browser.switch_to.active_element
    token = explorer.answer("sea")["tokens"][1][2]["name"]
    assert "le-value" in active.get_attribute("class") and active.get_attribute("value") == token
    assert page.find(".le-step").get_attribute("value") == "2"
    page.keys("\ue007")
    page.until(lambda: page.find(".le-effect").text.startswith(Change(2, "token", token).label), "the intervention")

    page.focus(".le-ranking .le-doc")
    page.keys("\ue00d")  # space: follow this document
    active = page.browser.switch_to.active_element
    assert active.get_attribute("aria-pressed") == "true", "the focus stays where it was"
    assert page.all(".le-line.le-selected") and page.all(".le-near.le-selected")
    page.keys("a", "b", "dd")  # in the notebook's command mode these add and delete cells
    assert page.browser.execute_script(cells) == 1

    page.focus(".le-query")
    reached = set()
    for _ in range(60):
        reached |= set(page.browser.switch_to.active_element.get_attribute("class").split())
        page.keys("\ue004")
    assert {"le-query", "le-go", "le-chip", "le-k", "le-step", "le-kind", "le-value", "le-apply", "le-doc"} <= reached
    unlabelled = (
        "return [...document.querySelectorAll('.laser-explorer :is(input, select)')].filter(n => !n.labels.length)"
    )
    assert page.browser.execute_script(unlabelled) == []


def test_bad_input(page, explorer):
    page.type("sea")
    k = int(page.find(".le-k-shown").text)
    page.until(lambda: page.ranking() == expected(explorer, "sea", k), "the answer")
    for query, message in {
        "": "The query is empty",
        "   ": "The query is empty",
        "x" * 10_000: "The query has 10,000 characters; at most 2,000",
        "sky " * 60: "this model reads at most",
    }.items():
        page.set(".le-query", query)
        page.find(".le-go").click()
        page.until(lambda m=message: m in page.find(".le-problem").text, message)
        assert page.ranking() == expected(explorer, "sea", k), "the last answer stays"
    markup = '<img src=x onerror="window.injected=1"><script>window.injected=1</script> sky'
    page.set(".le-query", markup)
    page.find(".le-go").click()
    page.until(lambda: page.ranking() == expected(explorer, markup, k), "the answer to markup")
    assert "“<img”" in page.find(".le-status").text and page.find(".le-problem").text == ""
    page.choose(".le-kind", "the token")
    for name, message in {"xyzzy": "“xyzzy” is no token of this model", "<b>x</b>": "“<b>x</b>” is no token"}.items():
        page.set(".le-value", name)
        page.find(".le-apply").click()
        page.until(lambda m=message: m in page.find(".le-problem").text, message)
    page.browser.execute_script(
        "arguments[0].value = 99; arguments[0].dispatchEvent(new Event('input'))", page.find(".le-k")
    )
    assert page.find(".le-k-shown").text == "8"
    assert page.browser.execute_script("return window.injected") is None
    assert not page.all(":is(img, script, b)")
    assert "Traceback" not in page.browser.find_element("css selector", "body").text


def test_both_themes(page, explorer):
    page.type("why is the sky blue")
    page.focus(".le-k")
    page.keys("\ue011", "\ue014", "\ue014")
    page.until(lambda: page.ranking() == expected(explorer, "why is the sky blue", 3), "the answer")
    page.choose(".le-step", "1")
    page.choose(".le-kind", "noise")
    page.find(".le-apply").click()
    page.until(lambda: page.all(".le-ranking-changed li"), "the changed ranking")
    dark = "document.body.dataset.jpThemeLight === 'false'"
    for theme, ready in [("JupyterLab Dark", dark), ("JupyterLab Light", f"!({dark})")]:
        page.browser.execute_script(
            "window.jupyterapp.commands.execute('apputils:change-theme', {theme: arguments[0]})", theme
        )
        page.until(lambda r=ready: page.browser.execute_script(f"return {r}"), theme)
        time.sleep(1)  # the theme's style sheet
        page.browser.execute_script("arguments[0].scrollIntoView()", page.find(".le-form"))
        page.shot(theme.lower().replace(" ", "-"))
        assert weakest_contrast(page) >= [4.5], theme
    assert not [e for e in page.errors() if "laser" in e["message"] or "anywidget" in e["message"]]


def weakest_contrast(page):
    """The smallest contrast (WCAG) of a text to the nearest background behind it, and which; faded parts aside."""
    return page.browser.execute_script("""
        const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
        const context = canvas.getContext("2d", {willReadFrequently: true});
        const rgb = (colour) => {
          context.clearRect(0, 0, 1, 1);
          context.fillStyle = colour;
          context.fillRect(0, 0, 1, 1);
          return context.getImageData(0, 0, 1, 1).data;
        };
        const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
          const v = c[i] / 255;
          return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        }, 0);
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const colour = rgb(getComputedStyle(node).backgroundColor);
            if (colour[3] === 255) return colour;
          }
          return [255, 255, 255];
        };
        const found = [];
        for (const node of document.querySelectorAll(".laser-explorer *")) {
          const text = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
          if (!text || node.closest("svg .le-later, .le-number, .le-hidden, option, title")) continue;
          const style = getComputedStyle(node);
          const [a, b] = [light(rgb(node instanceof SVGElement ? style.fill : style.color)), light(behind(node))];
          found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 200)]);
        }
        return found.sort((x, y) => x[0] - y[0])[0];
    """)


# -- the static file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_file_works_without_a_network(browser, explorer, tmp_path, theme):
    path = explorer.to_html(tmp_path / "page.html")
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    try:
        browser.get(path.as_uri())
        page = Page(browser)
        page.until(lambda: page.ranking() == expected(explorer, TASK.queries["q1"], 3), "the first example")
        page.all(".le-examples button")[2].click()
        page.until(lambda: page.ranking() == expected(explorer, "rain and snow", 3), "another example")
        page.focus(".le-k")
        for k in (4, 5, 6):
            page.keys("\ue014")
            assert page.ranking() == expected(explorer, "rain and snow", k)
        presets = page.all(".le-presets button")
        names = [button.text for button in presets]
        presets[names.index("soft token 1 → noise, seed 0")].click()
        change = Change(1, "noise", "0")
        page.until(
            lambda: page.ranking("ranking-changed") == expected(explorer, "rain and snow", 6, change), "the change"
        )
        assert page.ranking() == expected(explorer, "rain and snow", 6) != page.ranking("ranking-changed")
        page.shot(f"file-{theme}")
        assert weakest_contrast(page) >= [4.5]
        page.find(".le-reset").click()
        assert not page.all(".le-ranking-changed")
        page.type("a question of my own")
        assert "This file holds its examples only" in page.find(".le-problem").text
        page.type("sea")
        page.until(lambda: page.ranking() == expected(explorer, "sea", 6), "a typed example")
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert not page.errors()
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_committed_file_opens(browser):
    files = sorted((ROOT / "figures").glob("*.html"))
    assert files
    for path in files:
        browser.get(Path(path).as_uri())
        page = Page(browser)
        page.until(lambda page=page: len(page.ranking()) >= DOCUMENTS, "the ranking")
        page.all(".le-presets button")[0].click()
        page.until(lambda page=page: page.all(".le-ranking-changed li"), "the changed ranking")
        assert page.ranking() != page.ranking("ranking-changed") and not page.errors()
        for theme in ("dark", "light"):
            features = [{"name": "prefers-color-scheme", "value": theme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            assert weakest_contrast(page) >= [4.5], theme
            page.shot(f"{path.stem}-{theme}")
