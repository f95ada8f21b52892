"""Do samples show what their memories show: the table, on a run of digits."""

import json

import numpy as np
import pytest
from PIL import Image

from gmem_jax.bank import bank as bank_lib, files as bank_files, images
from gmem_jax.bench import memories
from gmem_jax.data import in_memory, load_encoders, write_images
from gmem_jax.train import dataset
from tests import tiny

# Three pictures that were trained on, two held out.
KINDS = np.array(["cat", "cat", "dog", "cat", "dog"])
UNITS = np.eye(5, dtype=np.float32)
UNITS[3] = (0.8, 0.6, 0, 0, 0)
PICTURES = memories.Pictures(UNITS, KINDS, 3)


def test_a_sample_that_is_its_memory():
  own = np.array([3, 4])
  values = memories.measure(PICTURES, own, 7 * UNITS[own])
  assert values["kind"] == values["own"] == 1
  assert values["trained"] == 0
  assert values["cosine"] == pytest.approx(1)
  # The nearest other picture of the cat is a cat; the dog has none near.
  assert values["real"] == 0.5


def test_a_sample_that_is_another_picture():
  values = memories.measure(PICTURES, np.array([3]), UNITS[[2]])
  assert values == pytest.approx(
    {"kind": 0, "own": 0, "trained": 1, "cosine": 0, "real": 1}
  )
  text = memories.table({"held out": values}, {"held out": 1})
  assert "| held out | 1 | 0 % | 0 % | 100 % | 0.00 | 100 % |" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of digits, and a bank of those held out, with files by class."""
  root = tmp_path_factory.mktemp("memories")
  tiny.save_run(root / "run")
  config = tiny.make_config()
  data = dataset.load(config)
  held = data.heldout_images
  names = []
  for i, label in enumerate(held.labels[:40].tolist()):
    names.append(f"{label}/{i}.png")
    (root / "held" / str(label)).mkdir(parents=True, exist_ok=True)
    write_images.save_png(root / "held" / names[-1], held.pixels[i])
  encoder = load_encoders.load_features(config, 1)
  tokenizer = load_encoders.load_tokenizer(config)
  rows = in_memory.prepare(held, tokenizer, encoder).bank.rows[:40]
  bank = bank_lib.MemoryBank(np.asarray(rows))
  info = bank_lib.make_info(bank, encoder=encoder.name, source="held")
  files = images.SourceImages(str(root / "held"), tuple(names))
  bank_files.write(root / "bank", bank_files.Stored(bank, info, files))
  return root


def test_the_command_prints_the_table_and_writes_the_picture(run, capsys):
  arguments = [str(run / "run"), str(run / "bank"), "--new=7,8", "--count=5"]
  arguments.append(f"--swap={run / 'bank'}")
  assert memories.main([*arguments, f"--out={run / 'out'}"]) == 0
  *lines, wrote = capsys.readouterr().out.splitlines()
  assert wrote == f"Wrote {run / 'out.png'} and its numbers, .json"
  assert [line.split(" | ")[0] for line in lines[2:]] == [
    "| trained on", "| held out", "| new kinds",
    "| another bank",
  ]  # fmt: skip
  stored = json.loads((run / "out.json").read_text())
  assert set(stored["new kinds"]) == set(memories.COLUMNS)
  # Real digits are mostly nearest to one of their class, noise is not theirs.
  assert stored["trained on"]["real"] >= 0.6
  with Image.open(run / "out.png") as picture:
    assert picture.size == (5 * 10 + 2, 8 * 10 + 2)
