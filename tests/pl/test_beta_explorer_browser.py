"""The β explorer in a real Chromium: dragging the dial moves the points, and nothing is fetched or complained of."""

import itertools
import json
import os
import shutil
import time

import numpy as np
import pytest

import scvae
from scvae.pl._explorer.page import asset, script
from tests.pl import explorable as cells

pytestmark = pytest.mark.slow

REQUIRED = "SCVAE_REQUIRE_CHROMIUM"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,800",
)
PATIENCE = 30  # seconds that the page has for what it does at once on a machine that is not busy
# the middle of all pixels of about a colour, and how many they are
MIDDLE = """
const canvas = document.querySelector("canvas");
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
let [x, y, n] = [0, 0, 0];
for (let p = 0; p < data.length; p += 4) {
  if (arguments[0].every((value, i) => Math.abs(data[p + i] - value) < 40)) {
    x += (p / 4) % canvas.width; y += Math.floor(p / 4 / canvas.width); n += 1;
  }
}
return [x / n, y / n, n, canvas.width, canvas.height];
"""
RED, BLUE, GREY = [255, 0, 0], [0, 0, 255], [196, 200, 204]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        complaint = "no Chromium with its chromedriver is installed (Debian: chromium, chromium-driver)"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(complaint)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    window.get("about:blank")
    yield window
    window.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that writes the page of some cells and opens it; at the end no error may have been logged."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before

    def to(adata, **options):
        place = tmp_path / "explorer.html"
        scvae.pl.beta_explorer(adata, save=place, **options)
        browser.get(place.as_uri())
        wait(lambda: middle(browser, [255, 255, 255])[2] > 0)
        return browser

    yield to
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == []


def complaints(browser):
    """What the console shows, but for a remark on how often these tests read the canvas."""
    return [entry for entry in browser.get_log("browser") if "getImageData" not in entry["message"]]


def wait(condition):
    """Waits until the condition holds; returns what it gave."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found


def middle(browser, rgb):
    return [value or 0 for value in browser.execute_script(MIDDLE, rgb)]


def drag(browser, beta):
    """Puts the dial at a β, as a hand would, and waits until it is drawn."""
    share = np.log(beta / cells.BETAS[0]) / np.log(cells.BETAS[-1] / cells.BETAS[0])
    browser.execute_script(
        "const dial = document.querySelector('input[type=range]'); dial.value = Math.round(arguments[0] * dial.max);"
        "dial.dispatchEvent(new Event('input', { bubbles: true }));",
        share,
    )
    wait(lambda: abs(np.log(shown_beta(browser) / beta)) < 0.02)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def shown_beta(browser):
    return float(browser.find_element("css selector", ".scvae-explorer").get_attribute("data-beta"))


def expected(browser, place):
    """The pixel of a place in the UMAP: the corners that stay lie 10 and 5 from the middle of the canvas."""
    _, _, _, width, height = middle(browser, BLUE)
    ratio = browser.execute_script("return Math.min(window.devicePixelRatio, 2)")
    scale = min((width - 28 * ratio) / 20, (height - 28 * ratio) / 10)
    return width / 2 + scale * place[0], height / 2 - scale * place[1]


@pytest.mark.parametrize(
    ("beta", "place"),
    [
        (0.1, cells.WALK[0]),
        (10**-0.5, (-4, 2)),  # half-way on the log scale
        (1, cells.WALK[1]),
        (10**0.8, (0.8 * 8, 0.2 * 4)),
        (10, cells.WALK[2]),
    ],
)
def test_the_dial_moves_the_points_to_where_they_are_at_this_beta(opened, beta, place):
    browser = opened(cells.explorable())
    stays = middle(browser, BLUE)
    drag(browser, beta)
    x, y, n, _, _ = middle(browser, RED)
    assert n > 20
    np.testing.assert_allclose((x, y), expected(browser, place), atol=3)
    assert middle(browser, BLUE) == stays


def test_three_places_of_the_dial_give_three_pictures(opened, tmp_path):
    browser = opened(cells.explorable(n=500, table=True))
    pictures = []
    for i, beta in enumerate((0.1, 1, 10)):
        drag(browser, beta)
        assert browser.save_screenshot(str(tmp_path / f"{i}.png"))
        pictures.append((tmp_path / f"{i}.png").read_bytes())
    assert all(one != other for one, other in itertools.combinations(pictures, 2))


def test_the_point_moves_along_the_curve_and_the_numbers_are_told(opened):
    browser = opened(cells.explorable())
    points = []
    for beta, told in ((0.1, "R 20.00, D 600.0"), (10**0.5, "R 4.50, D 612.5"), (10, "R 1.00, D 620.0")):
        drag(browser, beta)
        assert told in browser.find_element("css selector", ".scvae-curve").text
        point = browser.find_element("css selector", ".scvae-point")
        points.append([float(point.get_attribute(name)) for name in ("cx", "cy")])
    assert points[0][0] > points[1][0] > points[2][0]  # the rate falls
    assert points[0][1] > points[1][1] > points[2][1]  # the distortion rises, and so does the point


def test_a_page_opened_from_a_file_asks_for_nothing_else(opened, tmp_path):
    browser = opened(cells.explorable())
    drag(browser, 3)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {(tmp_path / "explorer.html").as_uri()}


def test_the_keyboard_turns_the_dial_and_playing_moves_it(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened(cells.explorable())
    dial = browser.find_element("css selector", "input[type=range]")
    before = shown_beta(browser)
    dial.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: shown_beta(browser) > before)
    dial.send_keys(Keys.HOME)
    wait(lambda: shown_beta(browser) == 0.1)
    assert dial.get_attribute("aria-valuetext") == "0.1"
    button = browser.find_element("css selector", ".scvae-play")
    button.send_keys(Keys.SPACE)
    wait(lambda: shown_beta(browser) > 0.2)
    assert "pause" in button.text
    button.send_keys(Keys.SPACE)
    assert "play" in button.text
    stopped = shown_beta(browser)
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert shown_beta(browser) == stopped


def test_another_colour_has_its_own_legend_and_paint(opened):
    from selenium.webdriver.support.ui import Select

    adata = cells.explorable()
    adata.obs.loc[adata.obs_names[1::2], "depth"] = np.nan
    browser = opened(adata)
    legend = browser.find_element("css selector", ".scvae-legend")
    assert legend.text.split() == ["walks", "20", "stays", "20"]
    assert middle(browser, RED)[2] > 0
    Select(browser.find_element("css selector", "select")).select_by_visible_text("depth")
    wait(lambda: middle(browser, RED)[2] == 0)
    assert middle(browser, GREY)[2] > 0
    assert legend.find_elements("css selector", ".scvae-ramp")
    assert legend.text.split()[-2:] == ["missing", "20"]


def test_a_category_is_brought_out_by_a_click_on_it_until_the_next(opened):
    browser = opened(cells.explorable())
    entry = browser.find_elements("css selector", ".scvae-entry")[0]
    entry.click()
    wait(lambda: middle(browser, BLUE)[2] == 0)
    assert entry.get_attribute("aria-pressed") == "true"
    assert middle(browser, RED)[2] > 0
    entry.click()
    away(browser)
    wait(lambda: middle(browser, BLUE)[2] > 0)


def away(browser):
    """Takes the pointer to where nothing is."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).move_to_element(browser.find_element("css selector", ".scvae-note")).perform()


def test_the_cell_under_the_pointer_is_named_without_its_name_being_markup(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    adata = cells.explorable()
    adata.obs["group"] = adata.obs["group"].cat.rename_categories({"walks": cells.HOSTILE})
    adata.obs_names = [f"{name}{cells.HOSTILE}" for name in adata.obs_names]
    browser = opened(adata)
    drag(browser, 10)
    ratio = browser.execute_script("return Math.min(window.devicePixelRatio, 2)")
    _, _, _, width, height = middle(browser, BLUE)
    x, y = expected(browser, cells.WALK[2])
    canvas = browser.find_element("css selector", "canvas")
    offset = (round((x - width / 2) / ratio), round((y - height / 2) / ratio))
    ActionChains(browser).move_to_element_with_offset(canvas, *offset).perform()
    tip = browser.find_element("css selector", ".scvae-tip")
    wait(tip.is_displayed)
    assert tip.text.startswith(cells.HOSTILE)
    assert tip.text.endswith(cells.HOSTILE)
    assert cells.HOSTILE in browser.find_element("css selector", ".scvae-legend").text
    assert browser.execute_script("return window.harmed") is None
    away(browser)
    wait(lambda: not tip.is_displayed())


def test_a_dark_screen_has_a_dark_ground(opened):
    browser = opened(cells.explorable())
    dark = [20, 24, 29]
    assert middle(browser, dark)[2] == 0
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    wait(lambda: middle(browser, dark)[2] > 1000)
    assert middle(browser, [255, 255, 255])[2] == 0


@pytest.mark.parametrize("width", [320, 700, 1600])
def test_at_any_width_nothing_sticks_out_and_no_ticks_touch(opened, width):
    adata = cells.explorable(n=400, table=True)
    names = [f"{'a very long name ' * 3}{'W' * 60}{i}" for i in range(40)]
    adata.obs["long"] = np.resize(names, adata.n_obs)
    browser = opened(adata, color=["long", "depth"])
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wait(lambda: browser.execute_script("return innerWidth") == width)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(browser.find_elements("css selector", ".scvae-entry")) == 40
    ticks = [tick.rect for tick in browser.find_elements("css selector", ".scvae-ticks span") if tick.is_displayed()]
    assert len(ticks) >= 3
    ticks.sort(key=lambda rect: rect["x"])
    assert all(left["x"] + left["width"] < right["x"] for left, right in itertools.pairwise(ticks))
    drag(browser, 0.1)


def test_as_a_widget_it_tells_python_and_listens_to_it(browser, tmp_path):
    contents = scvae.pl.beta_explorer(cells.explorable())
    page = tmp_path / "widget.html"
    page.write_text(
        f"""<!DOCTYPE html><meta charset="utf-8"><style>{asset("explorer.css")}</style><div id="el"></div>
        <script type="module">{script()}
        const values = {{ record: {json.dumps(contents.record)}, beta: 1, color: "group",
          buffer: new DataView(Uint8Array.from({list(contents.buffer)}).buffer) }};
        const calls = {{}};
        window.values = values; window.saved = [];
        window.python = (name, value) => {{ values[name] = value; calls["change:" + name](); }};
        const model = {{ get: (name) => values[name], set: (name, value) => {{ values[name] = value; }},
          save_changes: () => saved.push({{ beta: values.beta, color: values.color }}),
          on: (name, call) => {{ calls[name] = call; }}, off: (name) => {{ delete calls[name]; }} }};
        window.stop = render({{ model, el: document.getElementById("el") }});
        window.left = () => Object.keys(calls).length;
        </script>""",
        encoding="utf-8",
    )
    contents.close()
    browser.get_log("browser")
    browser.get(page.as_uri())
    wait(lambda: middle(browser, RED)[2] > 0)
    browser.execute_script("python('beta', 10)")
    wait(lambda: shown_beta(browser) == 10)
    dial = browser.find_element("css selector", "input[type=range]")
    assert int(dial.get_attribute("value")) == int(dial.get_attribute("max"))
    browser.execute_script("python('color', 'depth')")
    wait(lambda: middle(browser, RED)[2] == 0)
    drag(browser, 0.1)
    assert browser.execute_script("return saved") == []  # not for every step of the dial
    browser.execute_script("arguments[0].dispatchEvent(new Event('change'))", dial)
    (saved,) = browser.execute_script("return saved")
    assert saved["beta"] == pytest.approx(0.1)
    assert saved["color"] == "depth"
    browser.execute_script("stop()")
    assert browser.execute_script("return [left(), document.getElementById('el').childElementCount]") == [0, 0]
    assert complaints(browser) == []
