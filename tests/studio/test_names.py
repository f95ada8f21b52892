"""Pictures are called what visitors call them, and nothing else comes of it."""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from gmem_jax.data import write_images
from gmem_jax.studio import names

TYPED = 'a "b" #1 50%22 {c}$ <i>.png'


def bring(page, tab, path):
  page.locator(f"#{tab}-files input[type=file]").set_input_files(path)
  page.locator(f"#{tab}-files").get_by_text(path.name[:8]).first.wait_for()


@pytest.fixture
def picture(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  write_images.save_png(tmp_path / TYPED, pixels)
  return tmp_path / TYPED


def test_a_name_is_shown_and_stored_as_it_was_typed(server, visit, picture):
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  bring(page, "make", picture)
  page.locator("#make-start").click()
  page.locator("#make-zip").wait_for()
  memory = page.locator("#make-images .gm-memory")
  assert memory.inner_text().strip() == TYPED
  assert memory.locator("img").get_attribute("alt") == f"memory: {TYPED}"
  assert not memory.locator("i").count()
  with page.expect_download() as waiting:
    page.locator("#make-zip").click()
  with zipfile.ZipFile(waiting.value.path()) as file:
    text = file.read("images/sample.json").decode()
  assert json.dumps(TYPED) in text
  page.get_by_role("tab", name="Edit").click()
  bring(page, "edit", picture)
  page.locator("#edit-append").click()
  with page.expect_download() as waiting:
    page.locator("#edit-download").click()
  with zipfile.ZipFile(waiting.value.path()) as file:
    assert f"pictures/000-{TYPED}" in file.namelist()
    assert json.dumps(TYPED)[1:-1] in file.read("bank/images.json").decode()


def test_a_long_name_leaves_room_for_the_picture(server, visit, tmp_path):
  pixels = np.zeros((40, 30, 3), np.uint8)
  write_images.save_png(tmp_path / f"{'x' * 120}.png", pixels)
  page = visit(server.url, viewport={"width": 390, "height": 800})
  page.get_by_label("pictures", exact=True).check()
  bring(page, "make", tmp_path / f"{'x' * 120}.png")
  page.locator("#make-start").click()
  page.locator("#make-zip").wait_for()
  box = page.locator("#make-images .gm-memory img").bounding_box()
  assert box["width"] == box["height"] == 72
  width = page.evaluate("document.scrollingElement.scrollWidth")
  assert width <= 390


def test_a_drawing_joins_a_picture_with_its_name(server, visit, picture):
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  bring(page, "make", picture)
  page.get_by_role("button", name="Draw one").click()
  page.get_by_role("button", name="Brush").click()
  box = page.locator("canvas").last.bounding_box()
  page.mouse.move(box["x"] + 120, box["y"] + 80)
  page.mouse.down()
  page.mouse.move(box["x"] + 220, box["y"] + 200, steps=8)
  page.mouse.up()
  page.wait_for_timeout(500)
  page.get_by_role("button", name="Add the drawing").click()
  page.get_by_text("Added.").wait_for()
  page.locator("#make-start").click()
  page.locator("#make-zip").wait_for()
  memories = page.locator("#make-images .gm-memory").all_inner_texts()
  assert [each.strip() for each in memories] == [TYPED, "drawing.png"]


def test_too_large_a_picture_is_one_line_and_no_warning(
  server, visit, tmp_path
):
  """What the server's log says is looked at when it ends."""
  page = visit(server.url)
  page.get_by_label("pictures", exact=True).check()
  for side in (9_500, 14_000):
    path = tmp_path / f"bomb {side}.png"
    Image.new("1", (side, 10_000)).save(path)
    bring(page, "make", path)
    page.locator("#make-start").click()
    said = page.locator("#make-status").get_by_text(path.name)
    said.wait_for()
    assert "more than 89,478,485" in said.inner_text()
    page.locator("#make-files").get_by_label("Clear").click()


def test_a_name_is_no_way_out_of_the_folder(tmp_path):
  folder = tmp_path / "sha"
  folder.mkdir()
  file = folder / "a.png"
  file.write_bytes(b"picture")
  long = "é" * 400 + ".png"
  for typed, name in (
    ("a.png", "a.png"),
    (None, "a.png"),
    ("", "a.png"),
    ("..", "a.png"),
    ("/", "a.png"),
    ("../../b.png", "b.png"),
    ("C:\\me\\b.png", "b.png"),
    ("/etc/passwd", "passwd"),
    ('"\n\0\u202e\ud800.png', '".png'),
    (long, long[: names._LONGEST // 2 - 2] + ".png"),
  ):
    for _ in range(2):
      path = pathlib.Path(names.as_typed(str(file), typed))
      assert path.name == name
      assert path.parent in (folder, folder / "a.png.named")
      assert path.resolve() == file.resolve()
  # Where there is no link, it is called what Gradio calls it.
  (folder / "b.png").write_bytes(b"picture")
  (folder / "b.png.named").touch()
  other = str(folder / "b.png")
  assert names.as_typed(other, "c.png") == other
