"""The explorer in a real browser: a running JupyterLab, and the static file with no network.

Needs Chromium and its driver (``make browser``) and is skipped without them. Screenshots are left in build/explorer.
"""

import ast
import base64
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import WORDS, tiny_model, word_tokenizer

import laser_lab as ll
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.data.readers import RetrievalTask
from laser_lab.explorer import Change, Explorer
from laser_lab.explorer.answers import DOCUMENTS
from laser_lab.lab.cells import Cell, run

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
EVIL = [
    '<img src=x onerror="window.injected=1">',
    "</script><script>window.injected=1</script>",
    "`${window.injected=1}`",
    "\u202eright to left\u200f",
    "sea" * 3334,
    "👩\u200d🚀🏳️\u200d🌈 \u2028",
]
EVIL_TOKENS = ["/".join(text.split()) for text in EVIL]
CELL = """
import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.explorer import Change
task = RetrievalTask(**{task!r})
model = ll.load({folder!r}, device="cpu")
second = ll.load({folder!r}, device="cpu", pooling="generated")
lens = ll.fit_lens(model, list(task.corpus.values()), max_steps=2, show_progress_bar=False)
columns = {columns!r}
explorer = ll.explore(model, task, second_model=second, lens=lens, metadata=columns, show_progress_bar=False)
explorer
"""
EVIL_CELL = """
from test_explorer_browser import evil_explorer
explorer = evil_explorer({folder!r})
explorer
"""
COLUMNS = {doc: {"kind": "sea" if "sea" in text else "land", "size": len(text)} for doc, text in TASK.corpus.items()}


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
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.select import Select

        try:
            Select(self.find(selector)).select_by_visible_text(text)
        except StaleElementReferenceException:
            pass  # chosen: the control has been drawn anew

    def shot(self, name):
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def whole(self, name):
        """A picture of everything, however long it is."""
        height = self.browser.execute_script("return document.documentElement.scrollHeight")
        width = self.browser.execute_script("return window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 9000), "scale": 1}
        found = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    def values(self, statistic, card="statistics"):
        return json.loads(self.find(f".le-{card} [data-statistic='{statistic}']").get_attribute("data-values"))

    def python(self, expression, code=""):
        """Run code in the notebook's kernel, and give an expression's value."""
        script = """
            const [code, expression, done] = arguments;
            const {kernel} = window.jupyterapp.shell.currentWidget.sessionContext.session;
            kernel.requestExecute({code, user_expressions: {x: expression}, store_history: false, stop_on_error: false})
              .done.then(({content}) => done(content.user_expressions?.x?.data?.["text/plain"] ?? content.evalue));
        """
        return ast.literal_eval(self.browser.execute_async_script(script, code, expression))

    def taken(self, selector):
        """The text of the file that a button downloads."""
        script = """
            const [button, done] = arguments, make = URL.createObjectURL;
            URL.createObjectURL = blob => { blob.text().then(done); URL.createObjectURL = make; return make(blob); };
            button.click();
        """
        return self.browser.execute_async_script(script, self.find(selector))

    def errors(self):
        """What went wrong; Chromium's own remarks on the page that was left aside."""
        log = self.browser.get_log("browser")
        return [entry for entry in log if entry["level"] == "SEVERE" and entry["source"] != "intervention"]


def expected(explorer, query, k, change=None, beside=None):
    """{document: rank} that the list should show."""
    documents = explorer.answer(query, change, beside=beside)["documents"]
    return {d["id"]: d["ranks"][k - 1] for d in documents if d["ranks"][k - 1] <= DOCUMENTS or d["relevant"]}


@pytest.fixture(scope="module")
def explorer(tiny_folder):
    """The same as the cell's, so that what is seen can be computed here."""
    model = ll.load(tiny_folder, device="cpu")
    second = ll.load(tiny_folder, device="cpu", pooling="generated")
    lens = ll.fit_lens(model, list(TASK.corpus.values()), max_steps=2, show_progress_bar=False)
    return Explorer(model, TASK, second_model=second, lens=lens, metadata=COLUMNS)


# -- in JupyterLab -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil_folder(tmp_path_factory):
    """A model whose vocabulary is evil, too."""
    folder = tmp_path_factory.mktemp("evil")
    tiny_model().save_pretrained(folder)
    word_tokenizer([*EVIL_TOKENS, *WORDS[: -len(EVIL)]]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lab(tiny_folder, evil_folder, tmp_path_factory):
    """A JupyterLab of its own on a free port, with a notebook that shows the explorer, and one of evil texts."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "work").mkdir()
    task = {"name": TASK.name, "queries": TASK.queries, "corpus": TASK.corpus, "qrels": TASK.qrels}
    code = CELL.format(folder=tiny_folder, task=task, columns=COLUMNS)
    for name, source in {"explorer": code, "evil": EVIL_CELL.format(folder=evil_folder)}.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / "work" / f"{name}.ipynb")
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
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")])),
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
    return opened(browser, f"{lab}/lab/tree/explorer.ipynb")


def opened(browser, url):
    """A notebook whose cell has been run."""
    browser.get(url)
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
    for _ in range(140):
        reached |= set(page.browser.switch_to.active_element.get_attribute("class").split())
        page.keys("\ue004")
    assert {"le-query", "le-go", "le-chip", "le-k", "le-step", "le-kind", "le-value", "le-apply", "le-doc"} <= reached
    unlabelled = (
        "return [...document.querySelectorAll('.laser-explorer :is(input, select)')].filter(n => !n.labels.length)"
    )
    assert page.browser.execute_script(unlabelled) == []


def test_a_query_with_its_own_instruction(page):
    """Typed before the query, and shown to Python as it was typed; see the tests without a browser for its effect."""
    page.type("Instruct: why not Query: sea")
    page.until(lambda: "Asked with its own instruction: “why not”" in page.find(".le-status").text, "the instruction")
    assert page.python("explorer.query") == "Instruct: why not Query: sea"
    assert page.python("explorer.thoughts.texts") == ["sea"]
    assert {n.get_attribute("data-doc") for n in page.all(".le-ranking li.le-relevant")} == {"d3", "d9"}
    page.python("1", "explorer.query = 'Instruct: a\\nQuery: sea'")
    page.until(lambda: page.find(".le-query").get_attribute("value") == "Instruct: a Query: sea", "one line")


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
    # a question that overtakes another, with a change in sight: what went wrong stays in sight, too
    page.type("sea")
    page.until(lambda: page.ranking() == expected(explorer, "sea", 8), "the answer")
    page.set(".le-value", "snow")
    page.find(".le-apply").click()
    page.until(lambda: page.all(".le-ranking-changed li"), "the changed ranking")
    page.browser.execute_script(
        """
        const [field, button] = arguments;
        for (const text of ["sea", ""]) { field.value = text; button.click(); }
    """,
        page.find(".le-query"),
        page.find(".le-go"),
    )
    page.until(lambda: "The query is empty" in page.find(".le-problem").text, "the reason")
    time.sleep(1)
    assert "The query is empty" in page.find(".le-problem").text


def test_both_themes(page, explorer):
    page.type("why is the sky blue")
    page.focus(".le-k")
    page.keys("\ue011", "\ue014", "\ue014")
    page.until(lambda: page.ranking() == expected(explorer, "why is the sky blue", 3), "the answer")
    page.choose(".le-step", "1")
    page.choose(".le-kind", "noise")
    page.find(".le-apply").click()
    page.until(lambda: page.all(".le-ranking-changed li"), "the changed ranking")
    page.browser.execute_script("window.jupyterapp.commands.execute('application:toggle-left-area')")
    dark = "document.body.dataset.jpThemeLight === 'false'"
    for theme, ready in [("JupyterLab Dark", dark), ("JupyterLab Light", f"!({dark})")]:
        page.browser.execute_script(
            "window.jupyterapp.commands.execute('apputils:change-theme', {theme: arguments[0]})", theme
        )
        page.until(lambda r=ready: page.browser.execute_script(f"return {r}"), theme)
        time.sleep(1)  # the theme's style sheet
        assert weakest_contrast(page) >= [4.5], theme
        for width in (360, 900, 1600):
            size = {"width": width, "height": 1500, "deviceScaleFactor": 1, "mobile": False}
            page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            time.sleep(0.5)  # until it has been laid out
            page.browser.execute_script("arguments[0].scrollIntoView()", page.find(".le-form"))
            page.shot(f"{theme.lower().replace(' ', '-')}-{width}")
            wide = "const n = arguments[0]; return n.scrollWidth - n.clientWidth"
            assert (
                page.browser.execute_script(wide, page.browser.find_element("css selector", ".laser-explorer")) <= 0
            ), (theme, width)
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.browser.execute_script("window.jupyterapp.commands.execute('application:toggle-left-area')")
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


# -- the second edition --------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(page, explorer):
    """The first example at K = 3, nothing changed or clicked."""
    page.python("1", "explorer.show('sea', 1)")
    query, nothing = TASK.queries["q1"], {"documents": [], "tokens": []}
    page.python("1", f"_ = explorer.show({query!r}, 3, selection={nothing!r})")
    page.until(lambda: page.ranking() == expected(explorer, query, 3), "the first example")
    page.until(
        lambda: not page.all(".le-ranking-changed") and not page.all(".le-list [aria-pressed=true]"), "a blank view"
    )
    return page


def test_layers_by_step(fresh, explorer):
    page, query = fresh, TASK.queries["q1"]
    page.find(".le-read-layers").click()
    script = """return Object.fromEntries([...document.querySelectorAll(".le-layers td")].map(
        td => [td.dataset.key, td.querySelector(".le-token").textContent]))"""
    for lens, name in (("head", "LM head"), ("tuned", "tuned lens")):
        page.until(lambda: page.all(".le-lens"), "the lens")
        page.choose(".le-lens", name)
        cells = explorer.sides[0].layers(query, lens=lens)["cells"]
        tops = {f"layer {n} {k + 1}": c["tokens"][0]["text"] for n, row in enumerate(cells) for k, c in enumerate(row)}
        page.until(lambda tops=tops: page.browser.execute_script(script) == tops, f"the layers by {lens}")
    for by, shown in (
        ("rank of the last layer's token", lambda c: f"rank {c['rank']}"),
        ("entropy", lambda c: f"{c['entropy']:.3g}"),
    ):
        page.choose(".le-shade", by)
        text = page.find(".le-layers td[data-key='layer 1 2'] .le-p").text
        assert text == shown(cells[1][1])
    page.focus(".le-layers td[data-key='layer 2 1']")
    page.keys("\ue015", "\ue014", "\ue007")  # down to layer 1, right to step 2, Enter
    named = [button.text.split()[0] for button in page.until(lambda: page.all(".le-nearest button"), "the tokens")]
    assert named == [token["text"] for token in cells[1][1]["tokens"]]


def test_statistics_and_followed_tokens(fresh, explorer):
    page, query = fresh, TASK.queries["q1"]
    answer = explorer.answer(query, pins=["snow"])
    for name, values in answer["statistics"].items():
        assert page.values(name) == pytest.approx(values, abs=1e-4, nan_ok=True) if None not in values else True
        assert [v is None for v in page.values(name)] == [v is None for v in values]
    courses = {course["name"]: course for course in answer["courses"]}
    first = list(dict.fromkeys(step[0]["name"] for step in answer["tokens"]))[:8]
    assert page.values("token p", "pins") == [pytest.approx(courses[name]["p"], abs=1e-5) for name in first]
    page.find(".le-pin-token").send_keys("snow", "\ue007")
    page.until(lambda: page.values("token rank", "pins") == [courses["snow"]["rank"]], "the typed token")
    page.find(".le-heat td").click()
    wanted = ["snow", answer["tokens"][0][0]["name"]]
    page.until(
        lambda: page.values("token rank", "pins") == [courses[name]["rank"] for name in wanted], "the clicked one"
    )
    assert page.python("explorer.selection['tokens']") == wanted
    page.find(".le-pin").click()
    page.until(lambda: page.python("explorer.selection['tokens']") == wanted[1:], "one less")
    page.find(".le-pin-token").send_keys("xyzzy", "\ue007")
    page.until(lambda: "“xyzzy” is no token" in page.find(".le-problem").text, "the reason")


def test_effects_and_strengths(fresh, explorer):
    page, query = fresh, TASK.queries["q1"]
    page.find(".le-compute").click()
    changes = explorer._op_presets(query)
    page.until(lambda: len(page.all(".le-effect-cell")) == len(changes), "all effects")
    script = """return Object.fromEntries([...document.querySelectorAll(".le-effect-cell")].map(
        td => [td.dataset.key, td.dataset.moved ?? null]))"""
    for k in (3, 6):
        page.python("1", f"explorer.thinking_steps = {k}")
        page.until(lambda k=k: page.find(".le-k-shown").text == str(k), "K from a cell")
        wanted = {}
        for told in changes:
            effect = explorer.sides[0].effect(query, Change(**{n: v for n, v in told.items() if n != "label"}))
            before, after = effect["before"][k - 1], effect["after"][k - 1]
            moved = None if after is None else str(before - after)
            wanted[f"effect {told['step']} {told['kind']}"] = moved
        assert page.browser.execute_script(script) == wanted
    page.find("[data-key='effect 2 noise']").click()
    page.until(lambda: page.find(".le-effect").text.startswith("soft token 2 → noise, seed 0"), "the chosen effect")
    page.choose(".le-step", "1")
    page.choose(".le-kind", "the token")
    page.set(".le-value", "snow")
    page.find(".le-apply").click()
    page.until(lambda: "“snow”" in page.find(".le-effect").text, "the whole change")
    from selenium.webdriver import ActionChains

    slider = page.find(".le-strength")
    ActionChains(page.browser).drag_and_drop_by_offset(slider, -30, 0).perform()
    strength = float(slider.get_attribute("value"))
    assert 0 < strength < 1
    change = Change(1, "token", "snow", strength)
    page.until(lambda: page.find(".le-effect").text.startswith(change.label), "the part of the change")
    assert page.ranking("ranking-changed") == expected(explorer, query, 6, change)
    assert page.python("explorer.change.strength") == strength
    page.choose(".le-mode", "steer (add)")
    page.find(".le-apply").click()
    change = Change(1, "token", "snow", 1, "steer")
    page.until(lambda: page.find(".le-effect").text.startswith(change.label), "steering")
    assert page.ranking("ranking-changed") == expected(explorer, query, 6, change)


def test_two_columns(fresh, explorer):
    page, query = fresh, TASK.queries["q1"]
    page.choose(".le-other", "another query")
    page.find(".le-other-query").send_keys("rain and snow", "\ue007")
    beside = {"query": "rain and snow"}
    page.until(lambda: page.ranking("ranking-changed") == expected(explorer, query, 3, beside=beside), "another query")
    answer = explorer.answer(query, beside=beside)
    moved = {d["id"]: d["before"][2] - d["ranks"][2] for d in answer["documents"]}
    for row in page.all(".le-ranking-changed li"):
        by = moved[row.get_attribute("data-doc")]
        assert (
            row.find_element("css selector", ".le-moved")
            .text.split()[0]
            .startswith("=" if not by else f"{'▲' if by > 0 else '▼'}{abs(by)}")
        )
    page.choose(".le-other", "the second model")
    beside = {"model": 1}
    page.until(
        lambda: page.ranking("ranking-changed") == expected(explorer, query, 3, beside=beside), "the other model"
    )
    assert page.all(".le-map-changed canvas") and page.python("explorer.beside") == beside
    page.choose(".le-other", "nothing")
    page.until(lambda: not page.all(".le-ranking-changed") and page.python("explorer.beside") == {}, "one column")


def test_back_to_python(fresh, explorer):
    page = fresh
    page.python("1", "explorer.query = 'sea'")
    page.until(lambda: page.ranking() == expected(explorer, "sea", 3), "the query of a cell")
    assert page.find(".le-query").get_attribute("value") == "sea"
    page.python("1", "explorer.change = Change(2, 'token', 'snow')")
    change = Change(2, "token", "snow")
    page.until(lambda: page.ranking("ranking-changed") == expected(explorer, "sea", 3, change), "the change of a cell")
    page.focus(".le-k")
    page.keys("\ue014")
    page.until(lambda: page.python("explorer.thinking_steps") == 4, "the slider in Python")
    page.find(".le-ranking .le-doc").click()
    first = page.find(".le-ranking li").get_attribute("data-doc")
    page.until(lambda: page.python("explorer.selection['documents']") == [first], "the selection in Python")
    near = explorer.sides[0].neighbours(explorer.corpus.rows[first], 4)
    script = "return [...document.querySelectorAll('.le-neighbours li')].map(n => n.dataset.doc)"
    page.until(lambda: page.browser.execute_script(script) == [d["id"] for d in near], "its neighbours")
    frame = "explorer.ranking_frame[['doc_id', 'rank']].head(3).to_numpy().tolist()"
    wanted = explorer.ranking("sea", change).query("thinking_steps == 4")[["doc_id", "rank"]].head(3)
    assert page.python(frame) == wanted.to_numpy().tolist()
    assert page.python("explorer.thoughts.texts") == ["sea"]

    page.find(".le-copy").click()
    code = page.until(lambda: page.find(".le-code").text, "the code")
    shown = {}
    names = {"Change": Change, "model": None, "corpus": None}
    shows = type("E", (), {"show": lambda self, *a, **k: shown.update(k, query=a[0])})
    stub = type("ll", (), {"explore": lambda *a, **k: shown.update(given=k) or shows()})
    names |= {"second_model": 2, "lens": 3, "metadata": 4}
    exec(code, names | {"ll": stub})
    assert shown.pop("given") == {"second_model": 2, "lens": 3, "metadata": 4}
    selection = {"documents": [first], "tokens": []}
    assert shown == {"query": "sea", "thinking_steps": 4, "change": change, "selection": selection}

    rows = list(csv.DictReader(io.StringIO(page.taken(".le-csv"))))
    for row in rows:
        frame = explorer.ranking("sea", None if row["column"] == "as thought" else change)
        found = frame[
            (frame["thinking_steps"] == int(row["thinking_steps"])) & (frame["doc_id"] == row["doc_id"])
        ].iloc[0]
        assert int(row["rank"]) == found["rank"] and float(row["score"]) == pytest.approx(found["score"], abs=1e-3)
    for card in ("bump", "map"):
        svg = xml.etree.ElementTree.fromstring(page.taken(f".le-{card} .le-svg"))
        assert svg.tag.endswith("svg") and len(list(svg.iter())) > 20
    page.python("1", "explorer.query = 'rain and snow'")
    page.until(lambda: page.ranking() == expected(explorer, "rain and snow", 4), "the next query")
    assert not page.all(".le-ranking-changed")


def test_the_map(fresh, explorer):
    page = fresh
    search = page.find(".le-map .le-search")
    search.send_keys("sea")
    hits = [doc for doc, text in TASK.corpus.items() if "sea" in text or COLUMNS[doc]["kind"] == "sea"]
    assert [n.get_attribute("data-doc") for n in page.all(".le-hits li")] == hits
    assert page.find(".le-count").text == f"{len(hits)} of {len(TASK.corpus)} documents found"
    search.send_keys("\ue003\ue003\ue003 ")
    page.choose(".le-map .le-colour", "kind")
    drawn = """
        const canvas = document.querySelector(".le-map canvas"), [r, g, b] = arguments;
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const found = new Set();
        for (let i = 0; i < data.length; i += 4)
          if (data[i + 3] > 200) found.add([data[i], data[i + 1], data[i + 2]].join());
        return found.size;
    """
    assert page.browser.execute_script(drawn) >= 2, "two categories, two colours"
    page.all(".le-map .le-legend button")[0].click()
    assert page.find(".le-count").text.startswith(str(sum(c["kind"] == "sea" for c in COLUMNS.values())))
    page.all(".le-map .le-legend button")[0].click()
    page.find(".le-map [aria-label=Nearer]").click()
    script = "return document.querySelector('.le-map .le-here').getAttribute('cx')"
    before = float(page.browser.execute_script(script))
    from selenium.webdriver import ActionChains

    ActionChains(page.browser).drag_and_drop_by_offset(page.find(".le-map canvas"), 60, 0).perform()
    assert float(page.browser.execute_script(script)) == pytest.approx(before + 60, abs=2)
    page.find(".le-map [aria-label=Farther]").click()
    page.focus(".le-map canvas")
    page.keys("\ue014", "\ue007")  # an arrow begins at the first document; Enter follows it
    first = min(expected(explorer, TASK.queries["q1"], 3).items(), key=lambda d: d[1])[0]
    page.until(lambda: page.python("explorer.selection['documents']") == [first], "the followed document")


def test_a_model_that_fails_leaves_the_view(fresh, explorer):
    page = fresh
    before = page.ranking()
    code = """
import torch
from laser_lab.encoder import LatentEncoder
LatentEncoder.kept = LatentEncoder.think
def fails(self, *args, **options):
    raise torch.OutOfMemoryError("CUDA out of memory")
LatentEncoder.think = fails
"""
    page.python("1", code)
    page.type("snow and rain")
    page.until(lambda: page.find(".le-problem").text.startswith("The model ran out of memory"), "the reason")
    assert page.ranking() == before and page.python("explorer.query") == TASK.queries["q1"]
    nan = """
def fails(self, *args, **options):
    found = LatentEncoder.kept(self, *args, **options)
    found["states"][:, 2:] = float("nan")  # in the middle of a thought
    return found
LatentEncoder.think = fails
"""
    page.python("1", nan)
    page.type("snow and rain")
    page.until(lambda: "not finite" in page.find(".le-problem").text, "the reason")
    assert page.ranking() == before
    assert page.find(".le-problem").text.startswith("The embedding of this query is not finite: ")
    assert page.find(".le-status").text == ""
    page.find(".le-compute").click()  # presets and the plain query are known, the changes are not
    count = len(explorer._op_presets(TASK.queries["q1"]))
    page.until(lambda: len(page.all(".le-effects tbody td")) == count and not page.all("progress"), "all effects")
    failed = [cell for cell in page.all(".le-effects tbody td") if cell.text == "failed"]  # others were asked before
    assert page.find(".le-failures").text.startswith(f"{len(failed)} failed: the embedding of this query is not finite")
    assert len(failed) > count / 2 and page.ranking() == before
    grid = "return document.querySelector('.laser-explorer .le-layers.le-card').textContent"
    page.python("1", "LatentEncoder.think = LatentEncoder.kept")
    if page.all(".le-read-layers"):
        page.find(".le-read-layers").click()
    page.until(lambda: page.all(".le-layers td[data-key]"), "the layers")
    shown, lens = page.browser.execute_script(grid), page.find(".le-lens").get_attribute("value")
    page.python("1", nan)
    page.choose(".le-lens", "LM head" if lens == "tuned" else "tuned lens")
    page.until(lambda: "not finite" in page.find(".le-problem").text, "the reason")
    page.until(lambda: page.browser.execute_script(grid) == shown, "the layers as they were")
    assert page.find(".le-lens").get_attribute("value") == lens and page.ranking() == before
    page.python("1", "LatentEncoder.think = LatentEncoder.kept")
    page.type("snow and rain")
    page.until(lambda: page.ranking() == expected(explorer, "snow and rain", 3), "the answer")


def evil_explorer(folder):
    corpus = {f"{i} {text}": text for i, text in enumerate(EVIL)}
    columns = {doc: {text[:60]: text for text in EVIL} for doc in corpus}
    queries = {f"q{i}": f"sea {text}"[:300] for i, text in enumerate(EVIL)}
    task = RetrievalTask(EVIL[0], queries, corpus, {"q0": {next(iter(corpus)): 1}})
    return Explorer(ll.load(folder, device="cpu"), task, metadata=columns)


def attack(page, explorer):
    """Use everything that shows a text, and see that none is more than a text."""
    named = {token["name"] for step in explorer.answer(explorer.examples[0])["tokens"] for token in step}
    assert named & set(EVIL_TOKENS), "evil tokens are shown"
    for number, query in enumerate(explorer.task.queries.values()):
        page.all(".le-examples button")[number].click()
        page.until(lambda q=query: page.ranking() == expected(explorer, q, 3), query[:40])
        if page.all(".le-presets button"):
            page.all(".le-presets button")[1].click()
        else:
            page.choose(".le-kind", "the token")
            page.set(".le-value", EVIL_TOKENS[number])
            page.find(".le-apply").click()
        page.until(lambda: page.all(".le-ranking-changed li"), "the change")
        page.find(".le-ranking .le-doc").click()
        page.choose(".le-map .le-colour", " ".join(EVIL[number][:60].split()) if number < 4 else "nothing")
        if page.all(".le-read-layers"):
            page.find(".le-read-layers").click()
        page.until(lambda: page.all(".le-layers td[data-key]"), "the layers")
        page.find(".le-layers td[data-key]").click()
        page.until(lambda: page.all(".le-nearest button"), "the nearest tokens")
        page.find(".le-nearest button").click()  # follows the token, or no longer
        page.find(".le-copy").click()
        compile(page.find(".le-code").text, "view", "exec")
        rows = list(csv.DictReader(io.StringIO(page.taken(".le-csv"))))
        assert {row["doc_id"] for row in rows} <= set(explorer.corpus.ids)
        xml.etree.ElementTree.fromstring(page.taken(".le-bump .le-svg"))
        assert page.browser.execute_script("return window.injected") is None and not page.all(":is(img, script)")
        node = page.browser.find_element("css selector", ".laser-explorer")
        assert page.browser.execute_script("const n = arguments[0]; return n.scrollWidth - n.clientWidth", node) <= 0


def test_evil_texts_run_nothing_in_the_cell(browser, lab, evil_folder):
    page = opened(browser, f"{lab}/lab/workspaces/evil/tree/evil.ipynb")  # without the other notebook's tab
    attack(page, evil_explorer(evil_folder))
    assert not [e for e in page.errors() if "laser" in e["message"] or "anywidget" in e["message"]]


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
        page.find(".le-presets [aria-label='soft token 1 → noise, seed 0']").click()
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
        assert nameless(browser) == []
        assert not page.errors()
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_end_of_a_thought_is_marked_everywhere(browser, tmp_path):
    """On HopWorld, trained with `lexical` at K = 5: three hops, then the end."""
    cell = Cell("lexical", 0, 5)
    run([cell], show_progress_bar=False)
    world = HopWorld(HopWorldConfig()).task("test")
    explorer = Explorer(cell.load(), world)
    query = explorer.examples[0]
    browser.get(explorer.to_html(tmp_path / "page.html", explorer.examples[:2]).as_uri())
    page = Page(browser)
    page.until(lambda: page.ranking() == expected(explorer, query, 5), "the first example at the model's own K")
    answer = explorer.answer(query)
    taken, told = answer["taken"], f"The thought ended at step {answer['taken']}."
    assert 3 <= taken < 5 and answer["tokens"][taken - 1][0]["name"] == "</s>"
    for name in ("weight", "end_probability", "entropy"):
        assert page.values(name) == answer["statistics"][name]
        assert page.find(f"[data-statistic='{name}'] strong").text == ("0" if name == "weight" else "ended")
    weights = ll.think(explorer.model, [query], 8, prompt_name="query").weights[0]
    assert page.values("weight") == pytest.approx(weights.tolist(), abs=1e-5)
    assert answer["statistics"]["end_probability"][taken - 1] > 0.9 > answer["statistics"]["end_probability"][0]

    page.find(".le-read-layers").click()
    page.find(".le-compute").click()
    page.until(lambda: page.all(".le-layers td") and len(page.all(".le-effects tbody tr")) == 4, "layers and effects")
    assert page.find(".le-status").text == told
    assert [row.text for row in page.all(".le-tokens .le-over")] == [
        f"{taken + 1} the thought has ended", *(f"{k} –" for k in range(taken + 2, 9))
    ]  # fmt: skip
    for card, charts in {"bump": 1, "pins": 2, "statistics": len(answer["statistics"])}.items():
        assert len(page.all(f".le-card.le-{card} svg .le-end")) == charts, card
        labels = [svg.get_attribute("aria-label") for svg in page.all(f".le-card.le-{card} svg")]
        assert len(labels) == charts and all(told in label for label in labels), card
    assert len(page.all(".le-map .le-ended")) == 1 and "Framed: where the thought ended" in page.find(".le-map").text
    heads = [head.text for head in page.all(".le-layers thead th")]
    assert heads[taken + 1] == f"{taken + 1} ended" and page.all(".le-layers .le-after")
    assert len(page.all(".le-layers tbody td.le-none")) == (8 - taken) * len(page.all(".le-layers tbody tr"))
    effects = page.find(".le-effects.le-card")
    assert told in effects.text and [row.text.split("\n")[0] for row in page.all(".le-effects .le-over")][0].startswith(
        f"{taken} ended"
    )
    assert {td.text for td in page.all(".le-effects .le-over td")} == {"="}, "nobody reads these"
    page.focus(".le-k")
    for k, key in [(5, "\ue014"), (taken, "\ue010")]:  # to the right; to the end and back
        page.keys(key, *["\ue012"] * (8 - taken if k == taken else 1))
        assert page.find(".le-k-shown").text == str(k) and page.ranking() == expected(explorer, query, k)
        assert (told in page.find(".le-ranking").text) == (k > taken), "said under the ranking, beyond the end"

    page.find(".le-presets [aria-label='soft token 1 → noise, seed 0']").click()  # it ends where it ends
    page.until(lambda: page.all(".le-ranking-changed li"), "the change")
    second = explorer.answer(query, Change(1, "noise", "0"))["taken"]
    assert len(page.all(".le-statistics .le-end.le-second")) == (len(answer["statistics"]) if second < 8 else 0)
    assert page.find(".le-status").text == (f"The thought ended at step {second}." if second < 8 else "")
    assert not page.errors()
    page.whole("halting")


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


def test_evil_texts_run_nothing_in_the_file(browser, evil_folder, tmp_path):
    explorer = evil_explorer(evil_folder)
    browser.get(explorer.to_html(tmp_path / "evil.html").as_uri())
    page = Page(browser)
    page.until(page.ranking, "the first example")
    attack(page, explorer)
    assert overflow(browser) == [] and not page.errors()


def nameless(browser):
    """The controls and pictures that a screen reader could not name."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "searchbox", "combobox", "slider", "grid", "img", "image", "application", "group"}
    shown = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    assert len(shown) > 30
    return [n for n in shown if not n.get("name", {}).get("value") and n["role"]["value"] != "group"]


def overflow(browser):
    """What reaches beyond the page's width."""
    return browser.execute_script("""
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        return [...document.querySelectorAll(".laser-page *")].filter(n => n.getBoundingClientRect().right > width + 1)
          .map(n => n.outerHTML.slice(0, 120)).slice(0, 5);
    """)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 900, 1600])
def test_every_width_in_both_themes(browser, explorer, tmp_path, width, theme):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(explorer.to_html(tmp_path / "page.html").as_uri())
        page = Page(browser)
        page.until(lambda: page.ranking() == expected(explorer, TASK.queries["q1"], 3), "the first example")
        page.all(".le-presets button")[1].click()
        page.until(lambda: page.all(".le-ranking-changed li"), "the change")
        page.find(".le-read-layers").click()
        page.until(lambda: page.all(".le-layers td[data-key]"), "the layers")
        page.find(".le-compute").click()
        page.until(lambda: page.all(".le-effect-cell"), "the effects")
        page.choose(".le-map .le-colour", "kind")
        page.find(".le-ranking .le-doc").click()
        page.find(".le-layers td[data-key]").click()
        assert overflow(browser) == []
        assert weakest_contrast(page) >= [4.5]
        page.whole(f"width-{width}-{theme}")
        assert not page.errors()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def spent(browser):
    """Seconds of the processor that the page's own thread has spent: scripts, layout, painting."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_large_corpora(browser, tiny_folder, tmp_path, count):
    """Every interaction of the page, drawn, in less than 100 ms with 10,000 documents: of the processor, and on the
    clock where no other work on the machine stretches it."""
    words = (
        "why is the sky blue green sea because light scatters water and or not a very long question rain snow".split()
    )
    rng = np.random.default_rng(0)
    corpus = {f"d{i}": " ".join(rng.choice(words, 3)) for i in range(count)}
    columns = {doc: {"kind": text.split()[0]} for doc, text in corpus.items()}
    model = ll.load(tiny_folder, device="cpu")
    explorer = Explorer(model, corpus, ["sea", "the sky"], metadata=columns, batch_size=512)
    browser.get(explorer.to_html(tmp_path / "page.html").as_uri())
    page = Page(browser)
    page.until(lambda: page.ranking() == expected(explorer, "sea", 3), "the first example", 120)
    script = """
        const [node, change, done] = arguments;
        const started = performance.now();
        new Function("node", change)(node);
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - started)));
    """
    steps = [
        (".le-k", "node.value = 5; node.dispatchEvent(new Event('input'))"),
        (".le-map .le-search", "node.value = 'sea snow'; node.dispatchEvent(new Event('input'))"),
        (".le-map .le-colour", "node.value = 0; node.dispatchEvent(new Event('change'))"),
        (".le-ranking .le-doc", "node.click()"),
        (".le-map [aria-label=Nearer]", "node.click()"),
        (".le-heat td", "node.click()"),
    ]
    limit = 100 if count == 10_000 else 1000
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    clock, processor = {}, {}
    for selector, change in steps:
        before, took = spent(browser), []
        for _ in range(5):
            took.append(page.browser.execute_async_script(script, page.find(selector), change))
        clock[selector] = round(min(took), 1)
        processor[selector] = round(1000 * (spent(browser) - before) / len(took), 1)
    browser.execute_cdp_cmd("Performance.disable", {})
    (SHOTS / f"times-{count}.json").write_text(json.dumps({"clock": clock, "processor": processor}))
    hits = sum("sea" in text and "snow" in text for text in corpus.values())
    assert page.find(".le-count").text == f"{hits:,} of {count:,} documents found"
    page.shot(f"corpus-{count}")
    assert max(processor.values()) < limit, processor
    assert os.getloadavg()[0] > 1.5 or max(clock.values()) < limit, clock
