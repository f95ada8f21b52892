"""The generator of the Python interface, on a run of the digits."""

import dataclasses
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import gmem_jax
from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.commands import sample as sample_command
from gmem_jax.config import resolve
from gmem_jax.data import holdout, sources, write_images
from gmem_jax.sample import draw_rows, load as load_lib
from tests import layout, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "digits"
  tiny.save_run(workdir)
  return workdir


@pytest.fixture(scope="module")
def generator(run):
  return gmem_jax.load(run)


@pytest.fixture
def file(tmp_path):
  write_images.save_png(tmp_path / "five.png", digits()[5])
  return tmp_path / "five.png"


def digits() -> np.ndarray:
  """Image i is that of the bank's row i."""
  return holdout.split(sources.digits(), 360, (), 0)[0].pixels


def files_of(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def from_command_line(run, tmp_path, images=(), pairs=(), **changes):
  """The files that the command line writes."""
  out = tmp_path / "command"
  config = tiny.make_config(sample__output=str(out), **changes)
  sample_command.sample_mode(config, run, images, pairs)
  return files_of(out)


def test_python_and_command_line_write_the_same_files(
  generator, run, file, tmp_path
):
  for number, (images, changes, flags) in enumerate((
    (generator.sample(9), {"sample__count": 9}, {}),
    (
      generator.sample(rows=[975, 3], per_row=2, seed=4),
      {"sample__rows": (975, 3), "sample__per_row": 2, "sample__seed": 4},
      {},
    ),
    (
      generator.with_config("sampler.steps=2").sample(images=[file]),
      {"sampler__steps": 2},
      {"images": [str(file)]},
    ),
    (
      generator.interpolate(3, file, points=3),
      {"sample__points": 3},
      {"pairs": [("3", str(file))]},
    ),
  )):  # fmt: skip
    images.save(tmp_path / f"{number}")
    expected = from_command_line(
      run, tmp_path / f"c{number}", **flags, **changes
    )
    assert files_of(tmp_path / f"{number}") == expected
    assert len(expected) == len(images) + 2, "and grid.png and sample.json"


def test_snippets_are_memories_as_rows_are(generator):
  snippets = generator.source.bank.rows[[975, 3]]
  made = generator.sample(snippets=snippets, per_row=2)
  rows = generator.sample(rows=[975, 3], per_row=2)
  np.testing.assert_array_equal(made.pixels, rows.pixels)
  assert made.pixels.shape == (4, 8, 8, 1)
  assert made.pixels.dtype == np.uint8
  others = generator.sample(snippets=2 * snippets[::-1], per_row=2)
  assert (others.pixels != rows.pixels).any()
  assert made.info["sha256"] != others.info["sha256"]


def test_images_are_a_picture_in_a_notebook(generator):
  images = generator.sample(rows=[3, 7])
  with Image.open(io.BytesIO(images._repr_png_())) as picture:
    np.testing.assert_array_equal(np.asarray(picture), images.picture[..., 0])
  assert images.picture.shape[0] > 2 * 64


def test_all_seeds_and_banks_share_one_program(run, tmp_path):
  generator = gmem_jax.load(run)
  generator.sample(rows=[3], seed=0)
  stored = bank_files.read(run)
  bank = bank_lib.MemoryBank(np.asarray(stored.bank.rows)[3:])
  about = dataclasses.replace(
    stored.info, size=bank.size, digest=bank_lib.digest(bank)
  )
  bank_files.write(tmp_path / "later", bank_files.Stored(bank, about))
  other = generator.with_bank(tmp_path / "later")
  np.testing.assert_array_equal(
    other.sample(rows=[0], seed=1).pixels,
    generator.sample(rows=[3], seed=1).pixels,
  )
  assert generator.config.sample.bank == ""
  assert other.source.weights.params is generator.source.weights.params
  assert generator.source.sampler.jitted._cache_size() == 1
  assert other.source.sampler is generator.source.sampler


def test_the_nearest_memory_of_a_memory_is_itself(generator, file):
  for image in (5, file, str(file)):
    nearest = generator.nearest(image, k=3)
    assert nearest.rows[0] == 5
    assert nearest.scores[0] == pytest.approx(1, abs=1e-5)
    assert (np.diff(nearest.scores) <= 0).all()
    for row, picture in zip(nearest.rows, nearest.images, strict=True):
      np.testing.assert_array_equal(picture[..., :1], digits()[row])


def test_a_bank_without_images_has_nearest_rows_all_the_same(
  generator, run, tmp_path
):
  stored = bank_files.read(run)
  bare = bank_files.Stored(stored.bank, stored.info)
  bank_files.write(tmp_path / "bare", bare)
  nearest = generator.with_bank(tmp_path / "bare").nearest(5, k=2)
  assert nearest.rows[0] == 5
  assert nearest.images == [None, None]


def test_one_memory_needs_no_list_and_images_may_be_pillows(
  generator, tmp_path
):
  one = generator.sample(rows=3, per_row=1).pixels
  np.testing.assert_array_equal(
    one, generator.sample(rows=np.array([3]), per_row=1).pixels
  )
  path = tmp_path / "grey.png"
  Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
  from_file = generator.sample(images=path, per_row=1).pixels
  with Image.open(path) as image:
    for images in (image, [image], [np.asarray(image)[..., None]]):
      found = generator.sample(images=images, per_row=1).pixels
      np.testing.assert_array_equal(found, from_file)


def test_it_prints_in_a_line(generator):
  assert re.fullmatch(
    r"Generator\(step_0000008_ema, 1,437 memories, workdir=.*\)",
    repr(generator),
  )


def test_what_was_meant_is_guessed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "there").mkdir()
  for path, message in {
    "emojis": r"no such directory.*did you mean 'emoji'\?",
    "digits": r"no such directory; the recipe of this name is trained by",
    "there": r"is neither the directory of a run nor converted weights",
  }.items():
    with pytest.raises(ValueError, match=rf"path={path}: .*{message}"):
      gmem_jax.load(path)


def test_changed_settings_read_again_only_what_they_must(generator, run):
  same = generator.with_config("sample.seed=3", "sample.count=2")
  assert same.source is generator.source
  shorter = generator.with_config("sampler.steps=2")
  assert shorter.source.weights is generator.source.weights
  assert shorter.source.sampler.config.steps == 2
  raw = generator.with_config("sample.weights=params")
  assert raw.source.info == {"step": 8, "weights": "params"}
  with pytest.raises(ValueError, match=r"config\.model\.depth: 2 there, 3 now"):
    generator.with_config("model.depth=3")
  with pytest.raises(ValueError, match=r"sampler\.step: there is no such key"):
    generator.with_config("sampler.step=3")


def bad_inputs(tmp_path) -> dict[str, tuple]:
  text = tmp_path / "text.png"
  text.write_text("no image")
  return {
    r"rows.*1437": ({"rows": [1437]},),
    r"images=gone\.png: there is no such image": ({"images": "gone.png"},),
    r"images.*text\.png as an image": ({"images": [text]},),
    r"images=.*gone": ({"images": [tmp_path / "gone.png"]},),
    r"snippets of shape \(768,\)": ({"snippets": np.ones(768)},),
    r"snippets of shape \(2, 7\)": ({"snippets": np.ones((2, 7))},),
    r"snippets.*zero": ({"snippets": np.zeros((2, 768))},),
    r"exclude each other": ({"rows": [1], "images": [text]},),
    r"per_row=0": ({"rows": [1], "per_row": 0},),
  }


def test_bad_input_names_the_argument(generator, tmp_path):
  for message, (arguments,) in bad_inputs(tmp_path).items():
    with pytest.raises(ValueError, match=message):
      generator.sample(**arguments)
  with pytest.raises(ValueError, match=r"^b: .*1437"):
    generator.interpolate(3, 5000, points=2)
  for rows in ([3.5], "37", [[3]], None):
    with pytest.raises(ValueError, match=r"^rows=.*: rows are whole numbers"):
      draw_rows.whole(rows, "rows")
  reader = draw_rows.make_reader(generator.config, generator.source)
  for memory in (3.5, None, [3]):
    with pytest.raises(ValueError, match=r"^image=.*: a memory is a row"):
      reader.memory(memory, "image")
  with pytest.raises(
    ValueError, match=r"k=2000 is not in \[1, 1437\], the bank"
  ):
    generator.nearest(3, k=2000)
  for read in (generator.nearest, lambda end: generator.interpolate(3, end)):
    with pytest.raises(ValueError, match=r"text\.png as an image"):
      read(tmp_path / "text.png")
  with pytest.raises(ValueError, match=r"^path='.*gone': .*no such bank"):
    generator.with_bank(tmp_path / "gone")
  narrow = bank_lib.MemoryBank(np.ones((3, 16), np.float32))
  about = bank_lib.make_info(narrow, encoder="", source="test")
  bank_files.write(tmp_path / "narrow", bank_files.Stored(narrow, about))
  with pytest.raises(
    ValueError, match=r"^path: its rows are 16 wide, the netw"
  ):
    generator.with_bank(tmp_path / "narrow")
  wide = bank_lib.MemoryBank(np.ones((3, 768), np.float32))
  about = bank_lib.make_info(wide, encoder="another", source="test")
  bank_files.write(tmp_path / "other", bank_files.Stored(wide, about))
  with pytest.raises(ValueError, match=r"^path='.*other': .*made by another"):
    generator.with_bank(tmp_path / "other")


def test_what_is_no_run_and_no_weights_is_refused(run, tmp_path):
  with pytest.raises(ValueError, match=rf"path={tmp_path}: is neither"):
    gmem_jax.load(tmp_path)
  broken = tmp_path / "broken"
  shutil.copytree(run, broken)
  config = json.loads((run / "config.json").read_text())
  config["train"]["batch_size"] = "many"
  (broken / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"broken/config\.json.*batch_size"):
    gmem_jax.load(broken)


@pytest.mark.parametrize("name", ["xl_in1k", "b_in1k", "sit_xl2_in1k"])
def test_published_networks_have_one_recipe_each(name):
  model = dataclasses.asdict(gmem_jax.get_config(name).model)
  found = load_lib._fitting({"model": model}, ["sampler.steps=9"])
  assert found.keys() == {name}
  assert found[name].sampler.steps == 9
  # Of a run of ours, it is no recipe of published weights.
  assert not load_lib._fitting({"model": model, "exported": True}, [])


def test_a_recipe_is_a_config():
  config = gmem_jax.get_config("digits:cross", "train.steps=1000")
  assert config.model.conditioning == "cross"
  assert config.optim.decay_steps == 1000
  longer = resolve.change(config, "train.steps=2000", "compile_cache=7")
  assert longer.optim.decay_steps == 2000
  assert longer.compile_cache == "7"
  assert not resolve.change(
    config, "report.unconditional=false"
  ).report.unconditional
  with pytest.raises(ValueError, match=r"did you mean --config\.train\.steps"):
    gmem_jax.get_config("digits", "train.step=2")
  with pytest.raises(ValueError, match="KEY=VALUE is expected"):
    gmem_jax.get_config("digits", "train.steps")


@pytest.mark.usefixtures("standard_promotion")
def test_the_page_runs(run, tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "digits").symlink_to(run)
  monkeypatch.chdir(tmp_path)
  page = layout.ROOT / "docs" / "python.md"
  names: dict = {}
  for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
    # Training is typed with all pages; tests/commands/test_fit.py has less.
    if "gmem_jax.fit(" not in block:
      exec(compile(block, page.name, "exec"), names)
  assert (tmp_path / "out" / "000007.png").exists()


def test_import_needs_no_jax():
  code = (
    "import sys; sys.modules['jax'] = None; import gmem_jax;"
    " assert 'load' in dir(gmem_jax); gmem_jax.__version__"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  assert gmem_jax.load is load_lib.load
  with pytest.raises(AttributeError, match="no attribute 'oops'"):
    gmem_jax.oops  # noqa: B018
