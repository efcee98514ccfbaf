"""The page in a real browser, with the bundled models: as a person uses it."""

import io
import os
import pathlib
import shutil

import pytest
from PIL import Image

from fd_jax import assets, read_settings

pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra browser)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package"),
]
from tests.web.test_server import serving  # noqa: E402

PEOPLE = [assets.PEOPLE / name / f"{name}.jpg" for name in ("P005", "P003")]
PROMPT = "a man <|image|> and a woman <|image|> in a forest"
MINUTE = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    options = ["--alpha=0.2", "--beta=0.5", "--guidance-scale=4", "--sizes", "1", "4", "16"]
    with serving(tmp_path_factory.mktemp("server"), *options) as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, address, **options):
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}} | options)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.errors.extend(foreign(request.url, address)))
    page.goto(address)
    page.get_by_role("button", name="Sample", exact=True).wait_for(timeout=MINUTE)
    return page


def foreign(url, address):
    """What is fetched from elsewhere."""
    return [] if url.startswith((address, "data:", "blob:")) else [url]


def choose(page, files, prompt=PROMPT):
    page.locator(".fd-photographs input[type=file]").set_input_files([str(f) for f in files])
    page.locator(".fd-photographs li img").nth(len(files) - 1).wait_for(timeout=MINUTE)
    page.get_by_label("Prompt", exact=True).fill(prompt)


def state(page):
    found = page.locator("#fd-status [role=status]")
    return found.get_attribute("data-state") if found.count() else None


def wait_for_state(page, *states, timeout=3 * MINUTE):
    wanted = ", ".join(f"#fd-status [data-state={name}]" for name in states)
    page.locator(wanted).first.wait_for(timeout=timeout)


def test_two_people_are_sampled_cancelled_saved_and_reopened(browser, address, tmp_path):
    page = open_page(browser, address, color_scheme="light")
    choose(page, PEOPLE)
    page.get_by_text("Each photograph has its marker.").wait_for()
    captions = page.locator(".fd-photographs figcaption").all_text_contents()
    assert captions == ['1: "a man <|image|>" is P005.jpg', '2: "a woman <|image|>" is P003.jpg']

    page.get_by_role("button", name="Sample", exact=True).click()
    seen = set()
    live = page.locator("#fd-live img").first
    live.wait_for(timeout=MINUTE)
    while state(page) == "sampling":
        seen.add(live.get_attribute("src"))
        page.wait_for_timeout(50)
    wait_for_state(page, "done")
    assert len(seen) >= 2  # the picture changes while it forms
    assert page.locator("#fd-live img").count() == 4

    with page.expect_download() as download:
        page.get_by_role("link", name="Save picture").click()
    saved = tmp_path / "saved.png"
    download.value.save_as(saved)
    settings = read_settings(saved)
    assert (settings["prompt"], settings["references"]) == (PROMPT, '["P005.jpg", "P003.jpg"]')
    first = page.locator("#fd-results img").get_attribute("src")
    if picture := os.environ.get("FD_DEMO_PAGE"):
        page.evaluate("window.scrollTo(0, 0)")
        content = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        content.convert("P", palette=Image.Palette.ADAPTIVE).save(pathlib.Path(picture))

    # Cancel a long one, and go on.
    page.get_by_label("number input for Steps").fill("100")
    page.get_by_label("number input for Pictures").fill("16")
    page.get_by_label("Seed").fill("9")
    page.get_by_role("button", name="Sample", exact=True).click()
    wait_for_state(page, "sampling", "waiting", timeout=MINUTE)
    page.get_by_role("button", name="Cancel").click()
    wait_for_state(page, "cancelled", timeout=MINUTE)

    # Reopen: the fields are those of the saved picture, and make it again.
    page.locator("input[accept='image/png']").set_input_files(str(saved))
    page.get_by_text("Reopened saved.png").wait_for(timeout=MINUTE)
    page.wait_for_timeout(500)
    assert page.get_by_label("number input for Steps").input_value() == "50"
    assert page.get_by_label("Seed").input_value() == "0"
    assert page.get_by_label("Prompt", exact=True).input_value() == PROMPT
    page.get_by_role("button", name="Sample", exact=True).click()
    wait_for_state(page, "sampling", "waiting", timeout=MINUTE)
    wait_for_state(page, "done")
    again = page.locator("#fd-results img").get_attribute("src")
    assert pixels(again) == pixels(first)
    assert page.errors == []
    page.close()


def pixels(uri):
    import base64

    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).tobytes()


def test_people_and_markers_are_bound_at_the_field(browser, address):
    """By keyboard alone: order, removal, and a marker put into the prompt."""
    page = open_page(browser, address)
    choose(page, PEOPLE, prompt="a man")
    page.get_by_text("2 of 2 photographs have no marker").wait_for()
    page.get_by_label("Prompt", exact=True).press("End")
    page.get_by_role("button", name="Put <|image|> into the prompt").press("Enter")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a man <|image|>"
    page.get_by_text("1 of 2 photographs have no marker").wait_for()
    page.get_by_label("Move photograph 2 before the one on its left").press("Enter")
    caption = page.locator(".fd-photographs figcaption").first
    assert caption.text_content() == '1: "a man <|image|>" is P003.jpg'
    page.get_by_label("Remove photograph 2").press("Enter")
    page.get_by_text("Each photograph has its marker.").wait_for()
    page.get_by_label("Remove photograph 1").press("Enter")
    page.get_by_text('No photograph for "a man <|image|>".').wait_for()
    page.get_by_role("button", name="Sample", exact=True).click()
    page.get_by_role("alert").filter(has_text="1 markers").wait_for(timeout=MINUTE)
    assert page.errors == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_telephone(browser, address, scheme):
    """At 390 px nothing is cut off; every field has a name; dark follows the browser."""
    page = open_page(browser, address, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.get_by_role("button", name="Fill in an example").click()
    page.locator(".fd-photographs li img").nth(1).wait_for(timeout=MINUTE)
    page.get_by_text("Each photograph has its marker.").wait_for(timeout=MINUTE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    unnamed = page.evaluate("""() => [...document.querySelectorAll('input, textarea, button, img')]
        .filter((e) => e.offsetParent && !e.getAttribute('aria-label') && !e.labels?.length
            && !e.alt && !e.textContent.trim() && !e.title)
        .map((e) => e.outerHTML.slice(0, 200))""")
    assert unnamed == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(v) for v in background.strip("rgba()").split(",")[:3])
    assert (brightness < 200) == (scheme == "dark")
    assert page.errors == []
    page.close()


def test_modes_are_compared_side_by_side(browser, address):
    page = open_page(browser, address)
    choose(page, PEOPLE)
    page.get_by_label("number input for Steps").fill("6")
    page.get_by_role("button", name="Compare the five modes").click()
    wait_for_state(page, "done")
    labels = page.locator("#fd-results figcaption").all_text_contents()
    names = [label.removesuffix("Save") for label in labels]
    assert names == [f"mode {m}" for m in ("snf", "weighted", "delayed", "tdm", "sdm")]
    assert page.errors == []
    page.close()
