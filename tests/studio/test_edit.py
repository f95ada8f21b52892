"""The tab Edit, in a real browser."""

import re
import time
import zipfile

import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import files as bank_files
from gmem_jax.data import write_images
from tests.studio import conftest

SIZE = 1437


@pytest.fixture
def pictures(tmp_path):
  """Never seen in training: noise."""
  random = np.random.default_rng(0)
  for name in ("one", "two"):
    pixels = random.integers(0, 256, (40, 30, 3), np.uint8)
    write_images.save_png(tmp_path / f"{name}.png", pixels)
  return [tmp_path / "one.png", tmp_path / "two.png"]


def append(page, files):
  """Appends pictures, and waits until they are in the bank."""
  page.locator("#edit-files input[type=file]").set_input_files(files)
  page.locator("#edit-files").get_by_text(files[-1].stem).first.wait_for()
  page.locator("#edit-append").click()


def downloaded(page, folder):
  """The bank, as a visitor has it; and the pictures beside it."""
  with page.expect_download() as waiting:
    page.locator("#edit-download").click()
  with zipfile.ZipFile(waiting.value.path()) as file:
    file.extractall(folder)
  return folder / "bank"


def test_own_pictures_join_the_bank(
  server, visit, pictures, workdir, tmp_path, monkeypatch
):
  page = visit(server.url + "?tab=edit")
  append(page, pictures)
  said = page.locator("#edit-said")
  said.get_by_text("1,439 rows").wait_for()
  page.locator("#gm-head").get_by_text("your bank's 1,439 memories").wait_for()
  digest = bank_files.read(workdir).info.digest
  assert digest[:16] in said.inner_text()
  new = page.locator("#edit-shown button.thumbnail-item")
  new.first.wait_for()
  assert re.findall(r"\d+", page.locator("#edit-shown").inner_text()) == [
    "1437", "1438",
  ]  # fmt: skip

  # It is what one samples from, ...
  page.locator("#edit-take").click()
  rows = page.get_by_label("Rows of the bank").first
  rows.wait_for()
  assert rows.input_value() == "1437-1438"
  page.locator("#make-start").click()
  page.locator("#make-zip").wait_for()
  with page.expect_download() as waiting:
    page.locator("#make-npz").click()
  with np.load(waiting.value.path()) as file:
    made = file["arr_0"]
    assert str(server.temporary) not in str(file["sample_json"])
  generator = gmem_jax.load(workdir, "sample.device_batch=8")
  expected = generator.sample(images=pictures, per_row=2, seed=0).pixels
  assert abs(made[..., :1].astype(int) - expected).max() <= 1

  # ... looks through, old rows with their images, ...
  page.get_by_role("tab", name="Bank").click()
  page.get_by_text("1,439 of 1,439 rows, page 1 of 24").wait_for()
  page.locator("#bank-row input").fill("5")
  page.locator("#bank-row input").press("Enter")
  page.get_by_alt_text("memory, row 5", exact=True).wait_for()
  page.locator("#bank-row input").fill("1438")
  page.locator("#bank-row input").press("Enter")
  page.get_by_alt_text("memory, row 1438").wait_for()
  assert "two.png" in page.locator("#bank-detail").inner_text()

  # ... and takes away; nothing in it names a folder of the server.
  page.get_by_role("tab", name="Edit").click()
  bank = downloaded(page, tmp_path / "away")
  monkeypatch.chdir(tmp_path / "away")
  stored = bank_files.read(bank)
  assert stored.info.parent == digest
  assert stored.images.path(1438).read_bytes() == pictures[1].read_bytes()
  for path in (tmp_path / "away").rglob("*"):
    if path.is_file():
      for folder in (server.temporary, workdir):
        assert str(folder).encode() not in path.read_bytes(), path
  again = generator.with_bank(bank).sample(rows=[1437, 1438], per_row=2, seed=0)
  np.testing.assert_array_equal(again.pixels, expected)

  # Nobody else sees it.
  other = visit(server.url + "?tab=bank")
  other.get_by_text("1,437 of 1,437 rows").wait_for()


def test_rows_leave_the_bank_and_all_can_be_undone(
  server, visit, pictures, workdir, tmp_path
):
  page = visit(server.url + "?tab=edit")
  append(page, pictures[:1])
  said = page.locator("#edit-said")
  said.get_by_text("1,438 rows").wait_for()
  first = bank_files.read(downloaded(page, tmp_path / "first"))
  rows = page.locator("#edit-rows textarea")
  rows.fill("0, 7-9")
  page.locator("#edit-remove").click()
  said.get_by_text("1,434 rows").wait_for()
  assert "remove 4 rows" in said.inner_text()
  assert not page.locator("#edit-shown").is_visible(), "no row is new"
  second = bank_files.read(downloaded(page, tmp_path / "second"))
  assert second.info.parent == first.info.digest
  np.testing.assert_array_equal(
    second.bank.rows, np.delete(first.bank.rows, [0, 7, 8, 9], 0)
  )
  # The picture of the first edit is still there.
  page.get_by_role("tab", name="Bank").click()
  page.locator("#bank-row input").fill("1433")
  page.locator("#bank-row input").press("Enter")
  page.get_by_alt_text("memory, row 1433").wait_for()
  assert "one.png" in page.locator("#bank-detail").inner_text()
  # Of one visitor, only the newest bank is kept.
  kept = list(server.temporary.rglob("edit_*"))
  assert len(kept) - len(banks_of_others(kept, second)) == 1

  page.get_by_role("tab", name="Edit").click()
  page.locator("#edit-back").click()
  said.get_by_text("The studio's bank, 1,437 rows").wait_for()
  page.locator("#gm-head").get_by_text("· 1,437 memories").wait_for()
  assert not page.locator("#edit-download").is_visible()
  assert not [path for path in kept if holds(path, second)]


def test_the_bank_goes_when_its_visitor_does(
  workdir, visit, tmp_path, monkeypatch
):
  # A second after, and not an hour.
  monkeypatch.setenv("GRADIO_IS_E2E_TEST", "1")
  with conftest.serving(workdir, tmp_path / "temporary") as running:
    page = visit(running.url + "?tab=edit")
    page.locator("#edit-rows textarea").fill("0-2")
    page.locator("#edit-remove").click()
    page.locator("#edit-said").get_by_text("1,434 rows").wait_for()
    assert list(running.temporary.rglob("edit_*"))
    page.close()
    deadline = time.monotonic() + 30
    while list(running.temporary.rglob("bank_of_visitor_*")):
      assert time.monotonic() < deadline
      time.sleep(0.2)


def holds(path, stored):
  return path.exists() and bank_files.read(path).info == stored.info


def banks_of_others(kept, mine):
  return [path for path in kept if not holds(path, mine)]


def test_mine_is_compared_with_the_network_s(server, visit, pictures):
  page = visit(server.url + "?tab=edit")
  page.locator("#edit-rows textarea").fill("0-2")
  page.locator("#edit-remove").click()
  page.locator("#edit-said").get_by_text("1,434 rows").wait_for()
  page.get_by_role("tab", name="Compare").click()
  page.get_by_label("A: bank").click()
  page.get_by_role("option", name="mine").click()
  page.locator("#compare-start").click()
  page.locator("#compare-images .gm-two").first.wait_for()
  assert page.get_by_alt_text(re.compile("^memory of A: row")).count() == 3


def test_rows_of_the_bank_before_are_not_chosen_from(server, visit):
  page = visit(server.url + "?tab=bank&bank_row=5")
  page.get_by_alt_text("memory, row 5", exact=True).wait_for()
  page.get_by_role("button", name="Map of the bank").click()
  page.locator("#bank-draw").click()
  page.locator("#bank-map img").wait_for()
  page.get_by_role("tab", name="Edit").click()
  page.locator("#edit-rows textarea").fill("0")
  page.locator("#edit-remove").click()
  page.locator("#edit-said").get_by_text("1,436 rows").wait_for()
  page.get_by_role("tab", name="Bank").click()
  page.get_by_text("1,436 of 1,436 rows").wait_for()
  page.locator("#bank-map img").wait_for(state="detached")
  assert page.locator("#bank-row input").input_value() == ""


def test_what_cannot_be_edited_is_named(server, visit, tmp_path):
  page = visit(server.url + "?tab=edit")
  said = page.locator("#edit-said [role=alert]")
  page.locator("#edit-append").click()
  said.get_by_text("pictures: choose some first").wait_for()
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
  append(page, [broken])
  said.get_by_text("broken.png: ").wait_for()
  assert str(server.temporary) not in said.inner_text()
  for text, message in (
    ("9999", re.compile("rows.*9999")),
    ("x", "'x' is no row"),
    ("0-1436", "at most 1000 rows"),
  ):
    page.locator("#edit-rows textarea").fill(text)
    page.locator("#edit-remove").click()
    said.get_by_text(message).wait_for()
  page.locator("#edit-remove:enabled").wait_for()
