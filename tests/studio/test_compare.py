"""The tab Compare, in a real browser: each side is what the library makes."""

import base64
import io
import re

import jax
import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax.sample import host_bank
from gmem_jax.studio import compare as compare_lib, context
from tests import tiny
from tests.studio import conftest


def shifted(state):
  """Parameters that are not their moving average."""
  state = tiny.loud(state)
  params = jax.tree.map(lambda a: a + np.float32(0.1), state.params)
  return state.replace(params=params)


def scaled(state):
  """Another network."""
  state = tiny.loud(state)
  return state.replace(ema=jax.tree.map(lambda a: -a, state.ema))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Two runs, and a bank without the first rows of theirs."""
  folder = tmp_path_factory.mktemp("compared")
  tiny.save_run(folder / "first", scaled)
  tiny.save_step(folder / "first", 16, shifted)
  tiny.save_run(folder / "second", scaled)
  load(folder / "first").edit_bank(folder / "later", remove=[0, 1, 2])
  return folder


def load(path, *changes, step=None):
  return gmem_jax.load(path, "sample.device_batch=8", *changes, step=step)


@pytest.fixture(scope="module")
def comparing(runs, tmp_path_factory):
  temporary = tmp_path_factory.mktemp("comparing") / "temporary"
  flags = [f"--bank={runs / 'later'}", f"--against={runs / 'second'}"]
  with conftest.serving(runs / "first", temporary, *flags) as server:
    yield server


@pytest.fixture
def page(comparing, visit):
  page = visit(comparing.url + "?tab=compare&compare_rows=3,7")
  page.locator("#compare-start").wait_for()
  return page


def compare(page):
  """The images of both sides [4 h w], once they are there."""
  # What stands there from before is not taken for the result.
  page.evaluate("document.querySelector('#compare-images .gm-two')?.remove()")
  page.locator("#compare-start").click()
  page.wait_for_function(
    "document.querySelectorAll('#compare-images .gm-two').length === 2"
  )
  return tuple(
    np.stack(
      [
        pixels_of(each.get_attribute("src"))
        for each in page.get_by_alt_text(re.compile(f"^{side}, image")).all()
      ]
    )
    for side in "AB"
  )


def pixels_of(url):
  data = base64.b64decode(url.partition("base64,")[2])
  return np.asarray(Image.open(io.BytesIO(data)))


def made(generator):
  """What the library makes; steps are compiled apart, so see `check`."""
  return generator.sample(rows=[3, 7], per_row=2, seed=0).pixels[..., 0]


def check(shown, expected):
  assert shown.shape == expected.shape
  assert abs(shown.astype(int) - expected).max() <= 1


def choose(page, label, value):
  page.get_by_label(label).click()
  page.get_by_role("option", name=value, exact=True).click()


def test_with_and_without_memory(page, runs):
  a, b = compare(page)
  np.testing.assert_array_equal(a, b, "the same settings")
  check(a, made(load(runs / "first")))
  page.get_by_label("B: with memory").uncheck()
  before, b = compare(page)
  np.testing.assert_array_equal(before, a)
  without = ("scale=0.0", "start=0.0", "end=1.0")
  changes = [f"sampler.guidance.{change}" for change in without]
  check(b, made(load(runs / "first", *changes)))
  assert abs(a.astype(int) - b).mean() > 1
  assert page.get_by_alt_text(re.compile("^memory: row")).count() == 2


def test_two_sets_of_weights(page, runs):
  page.get_by_label("params").last.check()
  a, b = compare(page)
  check(a, made(load(runs / "first")))
  check(b, made(load(runs / "first", "sample.weights=params")))
  assert abs(a.astype(int) - b).mean() > 1


def test_two_runs(page, runs):
  choose(page, "B: network", "second")
  a, b = compare(page)
  check(a, made(load(runs / "first")))
  check(b, made(load(runs / "second", step=8)))
  assert abs(a.astype(int) - b).mean() > 1


def test_two_checkpoints_of_a_run(page, runs):
  choose(page, "B: checkpoint", "8")
  a, b = compare(page)
  check(a, made(load(runs / "first")))
  check(b, made(load(runs / "first", step=8)))
  assert abs(a.astype(int) - b).mean() > 1
  page.get_by_label("params").last.check()
  a, b = compare(page)
  check(b, made(load(runs / "first", "sample.weights=params", step=8)))
  page.wait_for_url(re.compile("b_checkpoint=8"))


def test_checkpoints_are_offered_as_training_writes_them(page, runs):
  tiny.save_step(runs / "second", 24, shifted)
  choose(page, "B: network", "second")
  choose(page, "B: checkpoint", "24")
  _, b = compare(page)
  check(b, made(load(runs / "second", step=24)))
  said = page.locator("#compare-status [role=alert]")
  for text, message in (("9", "has the steps 8, 24"), ("x", "'x' is no step")):
    page.get_by_label("B: checkpoint").fill(text)
    page.get_by_label("B: checkpoint").press("Tab")
    page.locator("#compare-start").click()
    said.get_by_text(message).wait_for()
    assert str(runs) not in said.inner_text()


def test_two_banks_show_two_memories(page, runs):
  choose(page, "B: bank", "later")
  a, b = compare(page)
  first = load(runs / "first")
  check(a, made(first))
  check(b, made(first.with_bank(runs / "later")))
  # Row 3 of the one is row 0 of the other.
  moved = first.sample(rows=[6, 10], per_row=2, seed=0).pixels[..., 0]
  check(b, moved)
  memories = page.locator("#compare-images .gm-apart .gm-memory")
  assert memories.count() == 4


def test_a_bank_is_read_once(runs, monkeypatch):
  own = load(runs / "first")
  banks = {"later": str(runs / "later")}
  studio = context.Studio(own, own.workdir, banks, {}, "")
  read = []
  load_bank = host_bank.load

  def counted(*args):
    read.append(args)
    return load_bank(*args)

  monkeypatch.setattr(host_bank, "load", counted)

  def side(scale, bank):
    sampling = ("ode_euler", 5, scale, 0.0, 1.0)
    return compare_lib._Side(compare_lib.OWN, "", "ema", bank, True, *sampling)

  found = [
    compare_lib._generator(studio, None, side(scale, "later"))
    for scale in (1.0, 1.5, 1.0)
  ]
  assert len(read) == 1
  assert len({id(each.source.require_bank()) for each in found}) == 1
  assert [each.config.sampler.guidance.scale for each in found] == [1, 1.5, 1]
  assert found[0].config.sample.bank == banks["later"]
  mine = own.with_bank(runs / "later")
  read.clear()
  used = compare_lib._generator(studio, mine, side(1.5, compare_lib.EDITED))
  assert used.source.require_bank() is mine.source.require_bank()
  assert not read


def test_stop_in_the_second_side_names_the_first(page):
  page.get_by_role("button", name="B: sampler").click()
  steps = page.get_by_label("Points of the time grid, B").last
  steps.fill("1000")
  steps.press("Tab")
  choose(page, "Sampler, B", "ode_rk4")
  page.locator("#compare-start").click()
  page.locator("#compare-status").get_by_text(
    re.compile(r"^B: \d+%")
  ).wait_for()
  page.get_by_role("tabpanel").get_by_role("button", name="Stop").last.click()
  page.get_by_text("Stopped in B: these are A's images.").wait_for()
  captions = page.locator("#compare-images figcaption")
  assert {each.inner_text() for each in captions.all()} == {"A, finished"}


def test_the_side_that_does_not_fit_is_named(page):
  said = page.locator("#compare-status [role=alert]")
  choose(page, "B: bank", "mine, from the tab Edit")
  page.locator("#compare-start").click()
  said.get_by_text("B: bank: none is edited yet").wait_for()
  rows = page.locator("#compare-rows textarea")
  rows.fill("9999")
  page.locator("#compare-start").click()
  said.get_by_text(re.compile(r"^A: rows.*9999")).wait_for()
