"""Parts of the studio, without a browser."""

import pathlib
import sys
import time
import types

import gradio as gr
import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax.data import row_images, write_images
from gmem_jax.sample import host_bank
from gmem_jax.studio import (
  bank_tab,
  catalogue as catalogue_lib,
  context,
  controls,
  link,
  pictures,
  streaming,
  uploads,
)


@pytest.fixture(scope="module")
def generator(workdir):
  return gmem_jax.load(workdir, "sampler.steps=40")


def test_rows_are_read_from_text():
  read = controls.parse_rows
  assert read("3, 7;10-12  14", 20) == [3, 7, 10, 11, 12, 14]
  assert read("3 - 5", 20) == [3, 4, 5]
  assert read("", 20) == read(None, 20) == []
  for text, message in (
    ("3, x", "'x' is no row"),
    ("-1", "'-1' is no row"),
    ("20", "the bank has rows 0 to 19"),
    ("5-3", "in order"),
    ("0-9", "at most 9 rows"),
    ("1e9", "no row"),
    ("9" * 400, "no row"),
  ):
    with pytest.raises(ValueError, match=message):
      read(text, 20, 9)


def test_settings_are_refused_in_the_words_of_the_page():
  assert controls.changes("ode_heun", 9, 2, 0.1, 1)[1:3] == [
    "sampler.steps=9",
    "sampler.guidance.scale=2.0",
  ]
  with pytest.raises(ValueError, match=r"^guidance from t=0\.5 to t=0\.2: "):
    controls.changes("ode_heun", 9, 2, 0.5, 0.2)
  with pytest.raises(ValueError, match=r"^guidance from t: a number is"):
    controls.changes("ode_heun", 9, 2, None, 1)


def test_weights_are_read_from_text():
  assert controls.parse_weights("2, 1;.5", 3) == [2, 1, 0.5]
  assert controls.parse_weights(" ", 2) == [1, 1]
  with pytest.raises(ValueError, match="2 for 3 memories"):
    controls.parse_weights("1 1", 3)
  with pytest.raises(ValueError, match="write numbers"):
    controls.parse_weights("a b", 2)


@pytest.mark.parametrize("value", [-1, 0.5, 2**32, None, "7", float("nan")])
def test_what_is_no_seed_is_refused(value):
  with pytest.raises(ValueError, match="seed"):
    controls.seed(value)


def test_small_images_are_enlarged_and_large_ones_shrunk():
  small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  shown = pictures.thumbnail(small, 9)
  assert shown.shape == (8, 8, 3)
  np.testing.assert_array_equal(shown[::4, ::4], small)
  assert pictures.thumbnail(np.zeros((300, 200, 1), np.uint8), 96).shape == (
    96, 64, 3,
  )  # fmt: skip


def test_names_cannot_be_html():
  pixels = np.zeros((8, 8, 3), np.uint8)
  text = pictures.figure(pixels, '"><script>', "<script>")
  text += pictures.error("<script>") + pictures.facts({"<script>": "<script>"})
  assert "<script>" not in text
  assert '"">' not in text


def test_looks_show_work_and_end_it(generator):
  seen = list(
    streaming.looks(lambda look: generator.sample(rows=[1, 2], on_step=look), 2)
  )
  assert seen[-1].done == 1
  np.testing.assert_array_equal(
    seen[-1].made.pixels, generator.sample(rows=[1, 2]).pixels
  )
  steps = []

  def work(look):
    def slowly(preview):
      steps.append(preview.step)
      time.sleep(0.05)
      look(preview)

    return generator.sample(rows=[1], on_step=slowly)

  looks = streaming.looks(work, 1)
  first = next(looks)
  looks.close()
  done = len(steps)
  time.sleep(0.3)
  assert len(steps) == done <= 12, "no step after it is closed"
  assert first.made is None


def test_looks_end_when_a_visitor_stops_them(generator):
  asked = []

  def stopped(done):
    asked.append(done)
    return len(asked) > 5

  with pytest.raises(streaming.StoppedError):
    list(
      streaming.looks(
        lambda look: generator.sample(rows=[1], on_step=look), 1, stopped
      )
    )
  assert len(asked) == 6, "asked at each step, until it says so"
  np.testing.assert_allclose(asked, np.arange(6) / 39)


def test_looks_raise_what_the_work_raises(generator):
  with pytest.raises(ValueError, match="not in the bank"):
    list(
      streaming.looks(
        lambda look: generator.sample(rows=[9999], on_step=look), 1
      )
    )


def test_pages_and_classes(generator):
  catalogue = context.catalogue(generator)
  assert catalogue.classes == list("0123456789")
  threes = catalogue.find("3")
  assert {catalogue.class_of(row) for row in threes.tolist()} == {"3"}
  assert sum(len(catalogue.find(each)) for each in catalogue.classes) == 1437
  assert not len(catalogue.find("cat"))
  rows, number, pages = catalogue_lib.page(np.arange(130), 3, 60)
  assert (rows.tolist(), number, pages) == ([*range(120, 130)], 3, 3)
  assert catalogue_lib.page(np.arange(130), 99, 60)[1] == 3
  assert catalogue_lib.page(np.arange(0), -4, 60)[1:] == (1, 1)


class _Counted(np.ndarray):
  """Rows of a bank that note how many of them are read."""

  read = 0

  def __getitem__(self, index):
    found = super().__getitem__(index)
    type(self).read += len(found) if found.ndim == 2 else 1
    return np.asarray(found)


def test_of_a_large_bank_no_more_is_read_than_is_shown():
  size = 1_281_167
  rows = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
  seen = []

  def read(row):
    seen.append(row)
    return np.full((8, 8, 3), row % 256, np.uint8)

  images = row_images.RowImages(
    "", read, find_classes=lambda: [str(i % 7) for i in range(size)]
  )
  bank = host_bank.HostBank(rows.T.view(_Counted), None, {}, lambda: images)
  catalogue = catalogue_lib.Catalogue(bank, 8)
  shown, _, _, line, tiles = bank_tab.look_at(catalogue, "", "", 12_345)
  first = 12_344 * bank_tab.PAGE
  assert shown == seen == [*range(first, first + bank_tab.PAGE)]
  assert "page 12345 of 21353" in line
  assert tiles[3][0][0, 0, 0] == (first + 3) % 256
  shown = bank_tab.look_at(catalogue, "3", "", 2)[0]
  assert shown == [3 + 7 * (bank_tab.PAGE + i) for i in range(bank_tab.PAGE)]
  assert len(seen) == 2 * bank_tab.PAGE
  assert _Counted.read == 0, "features"
  seen.clear()
  catalogue.draw_map()
  assert 0 < len(seen) <= catalogue_lib.CELLS**2
  assert 0 < _Counted.read <= 4096


def test_the_map_shows_each_row_where_it_is(generator):
  catalogue = context.catalogue(generator)
  canvas, cells = catalogue.draw_map()
  side = catalogue_lib.CELLS * catalogue_lib.CELL
  assert canvas.shape == (side, side, 3)
  shown = cells[cells >= 0]
  assert len(shown) == len(set(shown.tolist())) > 100
  rows, places = catalogue.places()
  y, x = np.argwhere(cells >= 0)[7]
  place = places[np.flatnonzero(rows == cells[y, x])[0]]
  low, high = places.min(axis=0), places.max(axis=0)
  at = (place - low) / (high - low) * (catalogue_lib.CELLS - 1)
  np.testing.assert_array_equal(np.rint(at), [x, y])


def test_the_map_is_also_drawn_by_umap_where_it_is(generator, monkeypatch):
  catalogue = catalogue_lib.Catalogue(generator.source.bank, 8)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert catalogue_lib.ways() == ["principal components"]
  monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
  assert catalogue_lib.ways() == ["principal components", "UMAP"]
  asked = []

  class Mapper:
    def __init__(self, **settings):
      asked.append(settings)

    def fit_transform(self, features):
      return features[:, 5:7]

  monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Mapper))
  rows, places = catalogue.places("UMAP")
  np.testing.assert_array_equal(places, generator.source.bank.rows[rows, 5:7])
  _, cells = catalogue.draw_map("UMAP")
  _, others = catalogue.draw_map()
  assert (cells != others).any()
  assert [each["metric"] for each in asked] == ["cosine"], "and only once"
  few = host_bank.HostBank(generator.source.bank.rows[:15], None, {}, list)
  with pytest.raises(ValueError, match="UMAP: more than 15 rows"):
    catalogue_lib.Catalogue(few, 8).places("UMAP")


def test_a_map_of_one_row_has_it_in_the_middle(generator):
  bank = host_bank.HostBank(
    generator.source.bank.rows[:1], None, {}, lambda: None
  )
  _, cells = catalogue_lib.Catalogue(bank, 8).draw_map()
  ((y, x),) = np.argwhere(cells >= 0)
  assert abs(x - catalogue_lib.CELLS / 2) <= 1
  assert abs(y - catalogue_lib.CELLS / 2) <= 1


@pytest.mark.parametrize(
  ("control", "text", "value"),
  [
    (gr.Checkbox(), "false", False),
    (gr.Checkbox(), "maybe", None),
    (gr.Number(), "12", 12),
    (gr.Number(), "-1", None),
    (gr.Number(), "nan", None),
    (gr.Number(), "1e400", None),
    (gr.Slider(2, 9), "1", None),
    (gr.Slider(2, 9), "2.5", 2.5),
    (gr.Radio(["a"]), "b", None),
    (gr.Textbox(), "x" * 9000, "x" * 2000),
  ],
)
def test_what_an_address_says_is_checked(control, text, value):
  found = link._value(control, text)
  assert found == (gr.skip() if value is None else value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Numba's and UMAP's own.
def test_umap_puts_together_what_is_alike():
  pytest.importorskip("umap", reason="needs the extra 'umap'")
  random = np.random.default_rng(0)
  middles = random.normal(size=(3, 16))
  kinds = np.arange(150) % 3
  rows = middles[kinds] + 0.1 * random.normal(size=(150, 16))
  bank = host_bank.HostBank(rows.astype(np.float32), None, {}, lambda: None)
  _, places = catalogue_lib.Catalogue(bank, 8).places("UMAP")
  centres = np.stack([places[kinds == kind].mean(0) for kind in range(3)])
  away = np.linalg.norm(places[:, None] - centres, axis=2)
  np.testing.assert_array_equal(away.argmin(axis=1), kinds)


def test_principal_components_keep_distances_of_a_plane():
  random = np.random.default_rng(0)
  plane = random.normal(size=(50, 2)).astype(np.float32)
  basis = np.linalg.qr(random.normal(size=(7, 2)))[0]
  found = host_bank.principal(plane @ basis.T + 3)
  for i in range(0, 50, 7):
    np.testing.assert_allclose(
      np.linalg.norm(found - found[i], axis=1),
      np.linalg.norm(plane - plane[i], axis=1),
      atol=1e-4,
    )
  assert host_bank.principal(np.ones((1, 7), np.float32)).tolist() == [[0, 0]]


def test_uploads_are_checked(tmp_path):
  good = tmp_path / "good.png"
  write_images.save_png(good, np.zeros((9, 9, 3), np.uint8))
  assert uploads.check([str(good)]) == [(str(good), "good.png")]
  assert uploads.check(None) == []
  bomb = tmp_path / "bomb.png"
  Image.new("1", (20_000, 20_000)).save(bomb)
  bad = tmp_path / "bad.png"
  bad.write_text("%!PS-Adobe-3.0 EPSF-3.0")
  for files, message in (
    ([bad], "bad.png: no image"),
    ([bomb], "bomb.png: .*bomb"),
    ([good] * 17, "17 pictures: at most 16"),
    ([tmp_path / "gone.png"], "gone.png: it is gone"),
  ):
    with pytest.raises(ValueError, match=message) as caught:
      uploads.check([str(file) for file in files])
    assert str(tmp_path) not in str(caught.value)


def test_drawings_lie_on_white_paper(tmp_path):
  drawn = np.zeros((8, 8, 4), np.uint8)
  drawn[2:4, :, 0], drawn[2:4, :, 3] = 255, 255
  path = uploads.keep_drawing({"composite": drawn}, str(tmp_path))
  pixels = write_images.read_png(pathlib.Path(path))
  assert pixels[0, 0].tolist() == [255, 255, 255]
  assert pixels[2, 0].tolist() == [255, 0, 0]
  for nothing in (None, {"composite": None}, {"composite": drawn[:2]}):
    with pytest.raises(ValueError, match="nothing is drawn"):
      uploads.keep_drawing(nothing, str(tmp_path))
