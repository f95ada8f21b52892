"""What visitors do in the tabs, in a real browser."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax.data import write_images
from tests.studio import conftest

# So much to do that there is time to stop it, or to wait for it.
LONG = "?make_count=16&make_per_row=4&method=ode_rk4&steps=1000"


def images(page):
  """Finished images beside their memories."""
  return page.locator("#make-images .gm-line .gm-grid > figure > img")


def make(page):
  """Makes images, and waits for all that is said of them."""
  page.locator("#make-start").click()
  page.locator("#make-zip").wait_for()


@pytest.fixture(scope="module")
def generator(workdir):
  return gmem_jax.load(workdir, "sample.device_batch=8")


@pytest.fixture
def picture(tmp_path):
  """Never seen in training: noise."""
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  write_images.save_png(tmp_path / "my picture.png", pixels)
  return tmp_path / "my picture.png"


def test_images_are_those_of_the_generator(server, visit, generator):
  page = visit(server.url)
  make(page)
  assert images(page).count() == 8
  assert page.locator("#make-images .gm-memory img").count() == 4
  near = page.locator("#make-images .gm-near")
  assert near.count() == 8
  assert re.search(
    r"nearest: row \d+\s+cosine 0\.\d{3}", near.first.inner_text()
  )
  assert "8 images in" in page.locator("#make-status").inner_text()

  with page.expect_download() as waiting:
    page.locator("#make-zip").click()
  with zipfile.ZipFile(waiting.value.path()) as file:
    record = json.loads(file.read("images/sample.json"))
    made = np.stack(
      [
        np.asarray(Image.open(io.BytesIO(file.read(f"images/{i:06}.png"))))
        for i in range(8)
      ]
    )
  expected = generator.sample(rows=record["draw"], per_row=2, seed=0)
  # Steps are compiled apart, see docs/python.md.
  assert abs(made.astype(int) - expected.pixels[..., 0]).max() <= 1
  del record["made_on"]
  assert record == json.loads(json.dumps(expected.info))
  with page.expect_download() as waiting:
    page.locator("#make-npz").click()
  with np.load(waiting.value.path()) as file:
    np.testing.assert_array_equal(file["arr_0"][..., 0], made)


def test_an_own_picture_becomes_images(server, visit, picture):
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  page.locator("#make-files input[type=file]").set_input_files(picture)
  page.locator("#make-files").get_by_text("my picture").first.wait_for()
  make(page)
  assert images(page).count() == 2
  memory = page.locator("#make-images .gm-memory")
  assert "picture.png" in memory.inner_text()
  assert memory.locator("img").count() == 1


def test_a_mixture_of_a_row_and_a_picture(server, visit, picture):
  page = visit(server.url)
  page.get_by_label("a mixture").check()
  page.get_by_label("Rows of the bank").fill("5, 7")
  page.locator("#make-files input[type=file]").set_input_files(picture)
  page.locator("#make-files").get_by_text("my picture").first.wait_for()
  page.get_by_label("Weights").fill("2 1")
  page.locator("#make-start").click()
  said = page.locator("#make-status [role=alert]")
  said.wait_for()
  assert said.inner_text() == "weights: 2 for 3 memories"
  page.get_by_label("Weights").fill("2 1 1")
  make(page)
  memory = page.locator("#make-images .gm-memory").inner_text()
  assert "50% row 5" in memory
  assert "25% row 7" in memory


def test_a_refused_click_keeps_what_was_made(server, visit):
  page = visit(server.url)
  make(page)
  page.get_by_label("rows", exact=True).check()
  page.locator("#make-start").click()
  page.locator("#make-status").get_by_text("choose rows first").wait_for()
  assert images(page).count() == 8
  with page.expect_download():
    page.locator("#make-zip").click()


def test_numbers_that_make_no_sense_are_named(server, visit):
  page = visit(server.url)
  seed, said = page.get_by_label("Seed").first, page.locator("#make-status")
  for value in ("-5", "1.5", "100000000000000000000"):
    seed.fill(value)
    page.locator("#make-start").click()
    said.get_by_text(f"seed={value}: an integer from 0 to").wait_for()
    # Which takes the next click.
    page.locator("#make-start:enabled").wait_for()
  seed.fill("")
  page.locator("#make-start").click()
  said.get_by_text("seed: a number is needed").wait_for()
  seed.fill("0")
  make(page)


def test_a_button_works_again_after_what_gradio_refuses(server, visit):
  page = visit(server.url)

  def spoil(route):
    sent = route.request.post_data_json
    sent["data"] = [999 if each == 4 else each for each in sent["data"]]
    route.continue_(post_data=json.dumps(sent))

  page.route("**/queue/join*", spoil)
  page.locator("#make-start").click()
  page.get_by_text("Value 999 is greater").first.wait_for()
  page.locator("#make-start:enabled").get_by_text("Make").wait_for()
  page.unroute("**/queue/join*")
  make(page)


def test_a_broken_upload_is_named(server, visit, tmp_path):
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  page.locator("#make-files input[type=file]").set_input_files(broken)
  page.locator("#make-files").get_by_text("broken").first.wait_for()
  page.locator("#make-start").click()
  said = page.locator("#make-status [role=alert]")
  said.wait_for()
  assert said.inner_text().startswith("broken.png: ")
  assert str(server.temporary) not in said.inner_text()
  # And the page is as usable as before.
  page.get_by_label("random rows").check()
  make(page)


def test_an_upload_that_is_too_large_is_named(server, visit, tmp_path, picture):
  large = tmp_path / "large.png"
  large.write_bytes(b"0" * ((16 << 20) + 1))
  too_large = "large.png: more than 16 MB; nothing was uploaded"
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  said = page.locator("#make-status [role=alert]")
  many = page.locator("#make-files input[type=file]")
  many.set_input_files([picture, large])
  said.get_by_text(too_large).wait_for()
  for tab, control, status in (
    ("Bank", "#bank-search", "#bank-said"),
    ("Between", "#between-second", "#between-status"),
    ("Edit", "#edit-files", "#edit-said"),
  ):
    page.get_by_role("tab", name=tab).click()
    if tab == "Bank":
      page.get_by_role("button", name="Search by a picture").click()
    page.locator(f"{control} input[type=file]").set_input_files(large)
    page.locator(status).get_by_text(too_large).wait_for()


def test_a_drawing_becomes_images(server, visit):
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  page.get_by_role("button", name="Draw one").click()
  page.get_by_role("button", name="Add the drawing").click()
  page.get_by_text("nothing is drawn").wait_for()
  page.get_by_role("button", name="Brush").click()
  canvas = page.locator("canvas").last
  box = canvas.bounding_box()
  page.mouse.move(box["x"] + 120, box["y"] + 80)
  page.mouse.down()
  page.mouse.move(box["x"] + 220, box["y"] + 200, steps=8)
  page.mouse.up()
  page.wait_for_timeout(500)
  page.get_by_role("button", name="Add the drawing").click()
  page.get_by_text("Added.").wait_for()
  make(page)
  assert "drawing.png" in page.locator("#make-images .gm-memory").inner_text()


def test_stop_frees_the_device(server, visit):
  page = visit(server.url + LONG)
  page.locator("#make-start").click()
  page.locator("#make-images img").first.wait_for()
  start = page.locator("#make-start")
  assert start.is_disabled()
  assert start.inner_text() == "Working…"
  page.locator("#make-stop").click()
  said = page.locator("#make-status")
  said.get_by_text(re.compile(r"Stopped at \d+%: .*unfinished")).wait_for()
  captions = page.locator("#make-images figcaption")
  assert captions.count() == page.locator("#make-images img").count() > 0
  assert {each.inner_text() for each in captions.all()} == {"unfinished"}
  page.locator("#make-start:enabled").get_by_text("Make").wait_for()
  other = visit(server.url)
  make(other)
  assert images(other).count() == 8
  assert not images(page).count()


def test_a_second_visitor_waits_and_sees_how_long(server, visit):
  first, second = visit(server.url + LONG), visit(server.url)
  first.locator("#make-start").click()
  first.locator("#make-images img").first.wait_for()
  second.locator("#make-start").click()
  told = second.locator("#make-wait")
  known = re.compile(r"^1 call is before yours: your turn in about \d+ s\.$")
  told.get_by_text(known).wait_for()
  before = told.inner_text()
  # It is counted down, or up if the first gets slower.
  second.wait_for_function(
    "before => document.querySelector('#make-wait').innerText !== before",
    arg=before,
  )
  assert not second.locator("#make-images img").count()
  first.locator("#make-stop").click()
  second.locator("#make-zip").wait_for()
  assert images(second).count() == 8
  assert not images(first).count(), "nor does one see the other's images"
  assert not told.is_visible()


def test_the_bank_is_browsed(server, visit):
  page = visit(server.url)
  page.get_by_role("tab", name="Bank").click()
  thumbnails = page.locator("#bank-thumbnails button.thumbnail-item")
  thumbnails.first.wait_for()
  assert thumbnails.count() == 60
  page.get_by_text("1,437 of 1,437 rows, page 1 of 24").wait_for()
  page.get_by_role("button", name="Next").click()
  page.get_by_text("page 2 of 24").wait_for()
  page.wait_for_url(re.compile("bank_page=2"))
  page.get_by_label("Class").click()
  page.get_by_role("option", name="3").click()
  page.get_by_text(re.compile(r"\d+ of 1,437 rows, page 1 of 3")).wait_for()
  with page.expect_response(re.compile("queue/data")):
    thumbnails.nth(4).click()
  detail = page.locator("#bank-detail dl")
  detail.wait_for()
  assert re.search(r"class\s+3", detail.inner_text())
  neighbours = page.locator("#bank-neighbours button.thumbnail-item")
  neighbours.first.wait_for()
  assert neighbours.count() == 12
  row = page.locator("#bank-row input").input_value()
  page.locator("#bank-take").click()
  page.get_by_label("Rows of the bank").wait_for()
  assert page.get_by_label("Rows of the bank").input_value() == row
  make(page)
  memory = page.locator("#make-images .gm-memory").inner_text()
  assert memory.strip() == f"row {row}"


def test_no_click_on_next_is_lost(server, visit):
  page = visit(server.url + "?tab=bank")
  page.get_by_text("page 1 of 24").wait_for()
  click = "(button, times) => { while (times--) button.click(); }"
  forward = page.get_by_role("button", name="Next")
  for _ in range(4):
    forward.evaluate(click, 1)
  page.get_by_text("page 5 of 24").wait_for()
  page.get_by_role("button", name="Back").dblclick()
  page.get_by_text("page 3 of 24").wait_for()
  # Nor is one counted that leads nowhere.
  for _ in range(30):
    forward.evaluate(click, 1)
  page.get_by_text("page 24 of 24").wait_for()
  page.get_by_role("button", name="Back").click()
  page.get_by_text("page 23 of 24").wait_for()
  assert page.locator("#bank-page input").input_value() == "23"


def test_a_page_is_shown_as_its_number_is_typed(server, visit):
  page = visit(server.url + "?tab=bank")
  page.get_by_text("page 1 of 24").wait_for()
  number = page.locator("#bank-page input")
  for text, shown in (("3", "3"), ("99", "24"), ("0", "1"), ("12", "12")):
    number.fill(text)
    page.get_by_text(f"page {shown} of 24").wait_for()
    page.wait_for_function(
      "shown => document.querySelector('#bank-page input').value === shown",
      arg=shown,
    )


def test_names_are_searched_as_they_are_typed(visit, tmp_path):
  with conftest.serving("emoji", tmp_path / "temporary") as running:
    page = visit(running.url + "?tab=bank&bank_name=face&bank_page=2")
    page.get_by_text("161 of 1,178 rows, page 2 of 3").wait_for()
    text = page.get_by_label("Name has")
    text.press_sequentially("-screaming")
    page.get_by_text("1 of 1,178 rows, page 1 of 1").wait_for()
    for _ in range(len("face-screaming")):
      text.press("Backspace")
    page.get_by_text("1,178 of 1,178 rows, page 1 of 20").wait_for()
    # Before its server goes: it would still ask for the last pictures.
    page.close()


def test_what_a_row_is_does_not_wait_for_the_device(server, visit):
  first, second = visit(server.url + LONG), visit(server.url + "?tab=bank")
  first.locator("#make-start").click()
  first.locator("#make-images img").first.wait_for()
  second.locator("#bank-thumbnails button.thumbnail-item").nth(7).click()
  second.get_by_alt_text("memory, row 7", exact=True).wait_for()
  neighbours = second.locator("#bank-neighbours button.thumbnail-item")
  assert not neighbours.count()
  assert first.locator("#make-start").is_disabled()
  first.locator("#make-stop").click()
  neighbours.first.wait_for()


def test_rows_that_are_none_are_named(server, visit):
  page = visit(server.url + "?tab=bank")
  page.locator("#bank-thumbnails button.thumbnail-item").first.wait_for()
  row, detail = page.locator("#bank-row input"), page.locator("#bank-detail")
  assert row.input_value() == ""
  page.locator("#bank-take").click()
  for text in ("-1", "1437", "3.5", "x", "0" * 13 + "5000"):
    row.fill(text)
    detail.get_by_text(f"row {text}: the bank has rows 0 to 1,436").wait_for()
  row.fill("")
  detail.get_by_text("Choose a memory to see what it is.").wait_for()
  selected = page.get_by_role("tab", selected=True)
  assert selected.inner_text() == "Bank", "nothing was there to take"


def test_the_bank_is_searched_by_a_picture(server, visit, generator, tmp_path):
  side = generator.config.encoder.image_size
  pixels = generator.source.bank.picture(321)(side)
  write_images.save_png(tmp_path / "known.png", pixels)
  page = visit(server.url + "?tab=bank")
  page.get_by_role("button", name="Search by a picture").click()
  page.locator("#bank-search input[type=file]").set_input_files(
    tmp_path / "known.png"
  )
  page.get_by_text("nearest to known.png").wait_for()
  first = page.locator("#bank-thumbnails .caption-label").first
  assert first.inner_text() == "321 · 1.00"


def test_the_map_is_drawn_and_clicked(server, visit):
  page = visit(server.url + "?tab=bank")
  page.get_by_role("button", name="Map of the bank").click()
  page.locator("#bank-draw").click()
  drawn = page.locator("#bank-map img")
  drawn.wait_for()
  page.get_by_alt_text(
    "Map of the bank, for the mouse; without one, choose a thumbnail"
  ).wait_for()
  box = drawn.bounding_box()
  # Somewhere in the middle there are memories.
  for part in (0.5, 0.45, 0.55, 0.4, 0.6):
    drawn.click(position={"x": box["width"] * part, "y": box["height"] / 2})
    page.wait_for_timeout(300)
  page.locator("#bank-detail dl").wait_for()
  before = drawn.evaluate("image => image.src")
  page.get_by_label("UMAP").check()
  page.locator("#bank-draw").click()
  page.wait_for_function(
    "before => ![before, undefined].includes("
    "document.querySelector('#bank-map img')?.src)",
    arg=before,
  )


def test_the_address_holds_the_settings(server, visit):
  page = visit(server.url + "?tab=make&make_source=rows&make_rows=3-5&steps=9")
  rows = page.get_by_label("Rows of the bank")
  rows.wait_for()
  assert rows.input_value() == "3-5"
  page.get_by_label("Seed").fill("12")
  page.get_by_label("Seed").press("Tab")
  page.wait_for_url(re.compile("make_seed=12"))
  assert "steps=9" in page.url
  make(page)
  assert images(page).count() == 6
  again = visit(page.url)
  again.get_by_label("Rows of the bank").wait_for()
  make(again)
  assert [each.get_attribute("src") for each in images(again).all()] == [
    each.get_attribute("src") for each in images(page).all()
  ]


def test_an_address_that_makes_no_sense_is_ignored(server, visit):
  page = visit(
    server.url
    + "?tab=x&make_count=900&make_seed=-1&method=rm&bank_class=<b>&steps=a"
  )
  make(page)
  assert images(page).count() == 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(server, visit, scheme):
  page = visit(
    server.url, viewport={"width": 390, "height": 800}, color_scheme=scheme
  )
  make(page)
  tabs = page.get_by_role("tab")
  assert tabs.count() == 6, "none is hidden in a menu"
  for tab in tabs.all():
    tab.click()
    page.wait_for_timeout(500)
    width = page.evaluate("document.scrollingElement.scrollWidth")
    assert width <= 390, tab.inner_text()
  background = page.evaluate("getComputedStyle(document.body).backgroundColor")
  bright = sum(map(int, re.findall(r"\d+", background)[:3])) > 380
  assert bright == (scheme == "light")


# The name of a control as a screen reader says it; "" if there is none.
_NAMELESS = """() => [...document.querySelectorAll(
  "input, textarea, select, button, [role=slider]")]
  .filter(each => each.offsetParent && each.type !== "file")
  .filter(each => !(each.getAttribute("aria-label") || each.title
    || [...(each.labels || [])].some(label => label.innerText.trim())
    || each.innerText?.trim() || each.closest("label")?.innerText.trim()
    || document.getElementById(each.getAttribute("aria-labelledby") || "-")))
  .map(each => each.outerHTML.slice(0, 200))"""


def test_all_can_be_done_without_a_mouse_or_eyes(server, visit):
  page = visit(server.url)
  page.locator("#make-start").focus()
  page.keyboard.press("Enter")
  page.locator("#make-zip").wait_for()
  assert not page.locator("img:not([alt])").count()
  tabs = page.get_by_role("tab")
  for tab in tabs.all():
    tab.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert tab.get_attribute("aria-selected") == "true"
    assert page.evaluate(_NAMELESS) == [], tab.inner_text()


def test_rows_are_chosen_by_keyboard(server, visit):
  page = visit(server.url + "?tab=bank")
  thumbnails = page.locator("#bank-thumbnails button.thumbnail-item")
  thumbnails.nth(7).focus()
  page.keyboard.press("Enter")
  page.get_by_alt_text("memory, row 7", exact=True).wait_for()
  neighbour = page.locator("#bank-neighbours button.thumbnail-item").first
  row = neighbour.inner_text().split()[0]
  neighbour.focus()
  page.keyboard.press("Enter")
  page.get_by_alt_text(f"memory, row {row}", exact=True).wait_for()
  page.locator("#bank-row input").focus()
  page.keyboard.press("Control+a")
  page.keyboard.type("12")
  page.get_by_alt_text("memory, row 12", exact=True).wait_for()


# What the key Tab should reach, and whether one sees where it is.
_MARK = """() => document.querySelectorAll(
  "input, textarea, button").forEach(each => {
    if (each.offsetParent && !each.disabled && each.tabIndex >= 0
        && each.closest("[role=tabpanel]") && each.type !== "file"
        && (each.type !== "radio" || each.checked)) each.dataset.missed = "1";
  })"""
_REACHED = """() => {
  const each = document.activeElement;
  delete each.dataset.missed;
  if (each === document.body) return "";
  const style = getComputedStyle(each);
  const seen = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
  return seen ? "" : each.outerHTML.slice(0, 200);
}"""


def test_the_keyboard_reaches_all_and_one_sees_where(server, visit):
  page = visit(server.url)
  for tab in page.get_by_role("tab").all():
    tab.click()
    page.wait_for_timeout(1000)
    page.evaluate(_MARK)
    missed = page.locator("[data-missed]")
    tab.focus()
    for _ in range(missed.count() + 20):
      page.keyboard.press("Tab")
      assert page.evaluate(_REACHED) == "", tab.inner_text()
    assert [each.evaluate("e => e.outerHTML") for each in missed.all()] == []


def test_the_way_between_a_row_and_a_picture(server, visit, picture):
  page = visit(server.url + "?tab=between&between_points=4&between_a=5")
  page.get_by_label("spherical").wait_for()
  page.locator("#between-second input[type=file]").set_input_files(picture)
  page.locator("#between-second").get_by_text("my picture").first.wait_for()
  strip = page.locator("#between-strip .gm-strip figure")
  # Each way makes another number of images: what stands on the page from the
  # way before is not taken for its result.
  for way, count in (
    ("linear", 4),
    ("spherical", 5),
    ("mask", 6),
    ("concat", 1),
  ):
    page.get_by_label(way, exact=True).check()
    points = page.locator("#between-points input[type=number]")
    points.fill(str(max(2, count)))
    points.press("Tab")
    page.locator("#between-start").click()
    page.locator("#between-status").get_by_text(f"{count} image").wait_for()
    # Both memories besides.
    page.wait_for_function(
      "count => document.querySelectorAll("
      "'#between-strip .gm-strip figure').length === count",
      arg=count + 2,
    )
  assert "row 5" in strip.first.inner_text()
  assert "picture.png" in strip.last.inner_text()
  page.get_by_label("linear", exact=True).check()
  points.fill("4")
  points.press("Tab")
  page.locator("#between-start").click()
  page.locator("#between-status").get_by_text("4 images").wait_for()
  page.get_by_alt_text("point 4 of 4").wait_for()
  last = strip.nth(4).locator("img").get_attribute("src")
  place = page.locator("#between-place input[type=number]")
  place.fill("4")
  place.press("Tab")
  page.get_by_alt_text("point 4, large").wait_for()
  large = page.locator("#between-large img")
  assert large.get_attribute("src") == last
  # What is typed on the way to a number is not refused.
  for text, point in (("0", 1), ("99", 4), ("", 1)):
    place.fill(text)
    page.get_by_alt_text(f"point {point}, large").wait_for()


def test_a_run_is_watched(server, visit):
  records = [
    {"step": 10 * i, "train/loss": 1 / i, "eval/frechet": 2.0} for i in (1, 2)
  ]
  text = "".join(json.dumps(each) + "\n" for each in records)
  # The last line is being written.
  path = server.workdir / "metrics.jsonl"
  path.write_text(text + '{"step": 30, "tra')
  (server.workdir / "samples").mkdir(exist_ok=True)
  pixels = np.zeros((16, 16, 1), np.uint8)
  for step in (10, 20):
    name = f"bank_{step:07}.png"
    write_images.save_png(server.workdir / "samples" / name, pixels)
  page = visit(server.url + "?tab=watch")
  page.get_by_text("digits, step 20").wait_for()
  facts = page.locator("#watch-numbers").inner_text()
  assert re.search(r"train/loss\s+0\.5 at step 20", facts)
  assert re.search(r"eval/frechet\s+2 at step 20", facts)
  page.get_by_alt_text("samples/bank_0000020.png").wait_for()
  sheet = page.locator("#watch-sheet input[type=number]")
  for text, step in (("99", 10), ("0", 20), ("2", 10), ("", 20)):
    sheet.fill(text)
    page.get_by_alt_text(f"samples/bank_{step:07}.png").wait_for()
  # By itself.
  path.write_text(text + '{"step": 30, "train/loss": 0.25}\n')
  page.get_by_text("digits, step 30").wait_for()
