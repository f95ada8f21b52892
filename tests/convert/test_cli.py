"""The command line on every golden file: there, back, and bit for bit."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.bench import convert as bench
from gmem_jax.convert import (
  __main__ as cli,
  detect,
  identify,
  read,
  rules,
  torch_export,
  torch_import,
  uses,
)
from gmem_jax.data import load_encoders
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models import dit
from tests import small_networks, tiny
from tests.convert import helpers


@pytest.mark.golden
@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_every_golden_file_round_trips(golden_dir, tmp_path, file_format):
  for path in helpers.golden_files(golden_dir):
    out = tmp_path / f"{path.stem}.out"
    back = tmp_path / f"{path.stem}.pth"
    options = [f"--format={file_format}", *helpers.settings(path)]
    assert helpers.run(path, out, *options)[0] == 0, path
    assert helpers.run(out, back, "--to-torch")[0] == 0, path
    value = helpers.converted_part(torch_file.load(path))
    helpers.assert_same(torch_file.load(back), value, path.name)


@pytest.mark.golden
def test_what_comes_back_is_recognised_again(golden_dir, tmp_path):
  for path in helpers.golden_files(golden_dir):
    first, second = tmp_path / f"{path.stem}.1", tmp_path / f"{path.stem}.2"
    back = tmp_path / f"{path.stem}.pth"
    options = ["--format=safetensors", *helpers.settings(path)]
    for arguments in (
      (path, first, *options),
      (first, back, "--to-torch"),
      (back, second, *options),
    ):
      assert helpers.run(*arguments)[0] == 0, arguments
    one, two = map(weights.read_metadata, (first, second))
    assert one["kind"] == two["kind"]
    assert one["model"] == two["model"]
    for tree in one["trees"]:
      helpers.assert_same(
        weights.load_converted(second, tree)[0],
        weights.load_converted(first, tree)[0],
      )


@pytest.mark.golden
def test_both_sets_of_a_trainer_are_converted(golden_dir, tmp_path):
  tried = 0
  for path in helpers.golden_files(golden_dir):
    value = torch_file.load(path)
    if not isinstance(value, dict) or not {"ema", "model"} <= value.keys():
      continue
    for name in ("ema", "model"):
      out, back = tmp_path / name, tmp_path / f"{name}.pth"
      options = [f"--weights={name}", *helpers.settings(path)]
      assert helpers.run(path, out, *options)[0] == 0
      metadata = weights.read_metadata(out)
      assert metadata["weights"] == name
      assert metadata["source"]["config"] == value["config"]
      assert helpers.run(out, back, "--to-torch")[0] == 0
      wanted = helpers.converted_part(value, name)
      helpers.assert_same(torch_file.load(back), wanted)
      tried += 1
    default = weights.load_converted(tmp_path / "ema")[0]
    other = weights.load_converted(tmp_path / "model")[0]
    with pytest.raises(AssertionError):
      helpers.assert_same(default, other)
  assert tried


@pytest.mark.golden
def test_converted_networks_compute_what_the_published_code_does(
  golden_dir, tmp_path
):
  """From the file to the output, with nothing but the converter's metadata."""
  families = {"sit": dit.SiT, "lightning_dit": dit.LightningDiT}
  compared = 0
  for path in helpers.golden_files(golden_dir):
    for name in ("ema", "model", None):
      stem = path.stem.removesuffix("_train") + (f"_{name}" if name else "")
      numbers = golden_dir / f"{stem}.npz"
      if not numbers.exists():
        continue
      with np.load(numbers) as data:
        if not {"x", "t", "c"} <= set(data.files):
          continue
        x, t, c = (data[key] for key in ("x", "t", "c"))
        keys = [k for k in ("out_eval", "out") if k in data.files]
        wanted = data[keys[0]]
      out = tmp_path / stem
      options = ["--format=safetensors", *helpers.settings(path)]
      options += [f"--weights={name}"] if name else []
      assert helpers.run(path, out, *options)[0] == 0
      params, metadata = weights.load_converted(out)
      fields = dict(metadata["model"])
      del fields["grid"]
      family = families[fields.pop("family")]
      network = family(**fields, scan_layers=True)  # Fast to compile.
      with jax.default_matmul_precision("highest"):
        result = jax.jit(network.apply)(
          {"params": jax.tree.map(jnp.asarray, params)},
          jnp.asarray(x.transpose(0, 2, 3, 1)),
          jnp.asarray(t),
          jnp.asarray(c),
        )
      error = np.abs(np.asarray(result).transpose(0, 3, 1, 2) - wanted).max()
      assert error <= 1e-4 * np.abs(wanted).max(), (stem, error)
      compared += 1
  assert compared


@pytest.mark.golden
def test_a_dry_run_writes_nothing_and_reports(golden_dir, tmp_path):
  for path in helpers.golden_files(golden_dir):
    code, out, err = helpers.run(path, "--dry-run", *helpers.settings(path))
    assert (code, err) == (0, "")
    for word in ("kind", "parameters", "tensors", f"{path.stat().st_size:,}"):
      assert word in out, path
  assert not list(tmp_path.iterdir())


@pytest.mark.golden
def test_the_step_is_reported(golden_dir, tmp_path):
  for path in helpers.golden_files(golden_dir):
    value = torch_file.load(path)
    if isinstance(value, dict) and "ema" in value:
      named = tmp_path / "0123500.pt"
      shutil.copyfile(path, named)
      out = helpers.run(named, "--dry-run", *helpers.settings(path))[1]
      assert "123,500" in out
      break
    if isinstance(value, dict) and "global_step" in value:
      out = helpers.run(path, "--dry-run", *helpers.settings(path))[1]
      assert f"{value['global_step']:,}" in out
  else:
    pytest.fail("no trainer's file among the goldens")


@pytest.mark.golden
def test_provenance_is_kept(golden_dir, tmp_path):
  path = helpers.golden_files(golden_dir)[0]
  out = tmp_path / "out"
  assert helpers.run(path, out, *helpers.settings(path))[0] == 0
  metadata = weights.read_metadata(out)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert metadata["source"]["file"] == path.name
  assert metadata["source"]["sha256"] == digest
  json.dumps(metadata)


def test_random_networks_go_to_pytorch_and_back(tmp_path):
  """They come from no file, so none tells their names and shapes."""
  small_networks.write_networks(tmp_path, seed=0)
  for name, setting in (("vae", "num_groups=16"), ("dinov2", "num_heads=2")):
    source, back = tmp_path / name, tmp_path / f"{name}.pth"
    code, _, err = helpers.run(source, back, "--to-torch")
    assert code == 0, err
    code, _, err = helpers.run(back, tmp_path / f"{name}_2", "--model", setting)
    assert code == 0, err
    for tree in weights.read_metadata(source)["trees"]:
      helpers.assert_same(
        weights.load_converted(tmp_path / f"{name}_2", tree)[0],
        weights.load_converted(source, tree)[0],
      )


def test_positions_resampled_twice_name_the_features(tmp_path):
  small_networks.write_networks(tmp_path, seed=0)
  original = tmp_path / "dinov2.pth"
  helpers.run(tmp_path / "dinov2", original, "--to-torch")
  heads, names = ["--model", "num_heads=2"], {}
  for name, grid in (("once", []), ("twice", ["--model", "position_grid=16"])):
    out = tmp_path / name
    code, _, err = helpers.run(original, out, *heads, *grid)
    assert code == 0, err
    config = tiny.make_config(
      encoder__features="dinov2",
      encoder__features_weights=str(out),
      encoder__image_size=256,
    )
    encoder = load_encoders.load_features(config, 3)
    names[name] = encoder.name
    assert encoder.network.position_grid == (16 if grid else None)
    assert load_encoders.features_name(config) == encoder.name
  # A bank of the one is no bank of the other.
  assert names["twice"] == names["once"][:-1] + ", position_grid=16)"


@pytest.mark.golden
def test_as_a_process(golden_dir, tmp_path):
  """The exit code and streams of the real thing; torch is not imported."""
  path = min(
    helpers.golden_files(golden_dir), key=lambda path: path.stat().st_size
  )
  check = (
    "import runpy, sys;"
    "sys.modules['torch'] = None;"
    "runpy.run_module('gmem_jax.convert', run_name='__main__', alter_sys=True)"
  )
  for arguments, code in (
    ([path, tmp_path / "out", *helpers.settings(path)], 0),
    ([path, tmp_path / "out", *helpers.settings(path)], 2),
    ([tmp_path / "absent.pt", tmp_path / "other"], 2),
  ):
    done = subprocess.run(
      [sys.executable, "-c", check, *map(str, arguments)],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("gmem_jax: " in done.stderr) == bool(code)
  assert weights.read_metadata(tmp_path / "out")["source"]["file"] == path.name


@pytest.mark.parametrize(
  "arguments",
  [
    ["x.pth"],
    ["x.pth", "out", "--model", "num_heads"],
    ["x.pth", "out", "--model", "num_heads=0"],
    ["x.pth", "out", "--model", "width=3"],
    ["x.pth", "out", "--weights=both"],
    ["x", "out", "--to-torch", "--weights=ema"],
  ],
)
def test_wrong_usage_exits_with_2(arguments):
  with pytest.raises(SystemExit) as error:
    helpers.run(*arguments)
  assert error.value.code == 2


def test_help_shows_examples(capsys):
  with pytest.raises(SystemExit) as error:
    cli.main(["--help"])
  assert error.value.code == 0
  text = capsys.readouterr().out
  options = ("--weights", "--format", "--dry-run", "--to-torch", "--model")
  for option in options:
    assert option in text
  assert text.count("python -m gmem_jax.convert") >= 6


def test_the_end_says_what_was_written_and_what_takes_it(tmp_path):
  path, out = tmp_path / "bank.pth", tmp_path / "deep" / "bank"
  torch_export.save(np.ones((4, 8), np.float32), path)
  *_, wrote, following = helpers.run(path, out)[1].splitlines()
  assert wrote == f"Wrote {out} (orbax)"
  assert following == f"Next: --mode=sample --bank={out} samples from it."
  back = tmp_path / "as" / "deep" / "bank.pth"
  *_, wrote, _ = helpers.run(out, back, "--to-torch")[1].splitlines()
  assert wrote == f"Wrote {back} (PyTorch)"
  kinds = {kind for kind, _ in detect._TABLES}
  kinds |= {"bank", "low_rank_bank", "latent_stats", "fid_stats"}
  assert uses.USES.keys() == kinds | {"int8_bank"}


def test_what_exists_is_left_as_it_is(tmp_path):
  path = tmp_path / "bank.pth"
  torch_export.save(np.ones((4, 8), np.float32), path)
  before = path.read_bytes()
  out = tmp_path / "out"
  out.write_text("precious")
  for arguments in ((path, out), (path, path)):
    code, _, err = helpers.run(*arguments)
    assert code == 2
    assert "already exists" in err
  assert out.read_text() == "precious"
  assert path.read_bytes() == before
  empty = tmp_path / "empty"
  empty.mkdir()
  assert helpers.run(path, empty)[0] == 0
  code, _, err = helpers.run(empty, path, "--to-torch")
  assert code == 2
  assert "already exists" in err
  assert "converted already" in helpers.run(empty, tmp_path / "new")[2]


def test_a_changed_parameter_name_is_noticed_on_the_way_back(tmp_path):
  bank = {"rows": np.ones((4, 8), np.float32)}
  metadata = {
    "kind": "bank",
    "title": "",
    "weights": None,
    "source": {"container": None},
    "tensors": [["rows", [4, 9]]],
  }
  with pytest.raises(rules.NamesError, match=r"shape \(4, 8\), expected"):
    torch_export.published_value({"bank": bank}, metadata)


def test_a_kind_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match=r"no PyTorch file holds a 'clock'"):
    torch_export.published_value({}, helpers.metadata("clock"))


def test_other_objects_beside_the_weights_are_refused(tmp_path):
  writer = torch_export._PickleWriter()
  program = (
    b"\x80\x02}("
    + writer._all(["ema", {"weight": np.ones(3, np.float32)}, "args"])
    + b"cargparse\nNamespace\n)\x81}"
    + writer._all(["lr", 0.1])
    + b"sbu."
  )
  path = helpers.zip_with_pickle(tmp_path / "x.pt", program, {"0": bytes(12)})
  code, _, err = helpers.run(path, tmp_path / "out")
  assert code == 2
  assert "refused to load argparse.Namespace:" in err
  assert "torch.save(checkpoint['ema'], new_path)" in err


def test_memory_holds_the_result_once(tmp_path):
  """numpy's allocations while a network is converted, against its size."""
  path = pathlib.Path(tmp_path / "checkpoint.pth")
  nbytes = bench.make_checkpoint(path, "S/1")
  source = read.open_source(path)
  contents = detect.detect(source)
  identity = identify.identify(contents, {})
  assert identity.title == "LightningDiT-S/1"
  tracemalloc.start()
  trees, _ = torch_import.convert(source, contents, identity)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert sum(a.nbytes for a in jax.tree.leaves(trees)) == nbytes
  assert nbytes <= peak < 1.05 * nbytes


def test_paths_may_begin_at_home(golden_dir, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copy(golden_dir / "bank_full.pth", tmp_path)
  assert helpers.run("~/bank_full.pth", "~/bank")[0] == 0
  assert weights.is_converted(tmp_path / "bank")
