"""python -m gmem_jax.evaluate, as a user gives it; one process is killed."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from gmem_jax.evaluate import __main__ as cli, networks, statistics
from gmem_jax.files import weights
from tests import tiny
from tests.convert import helpers
from tests.data import prepared
from tests.evaluate import fakes
from tests.files import hub_server

IMAGES = 96


@pytest.fixture(scope="module")
def dinov2(golden_dir, tmp_path_factory):
  """Converted weights of a small DINOv2."""
  out = tmp_path_factory.mktemp("weights") / "dinov2"
  source = golden_dir / "dinov2_tiny.pth"
  code, _, error = helpers.run(source, out, *helpers.settings(source))
  assert code == 0, error
  assert weights.read_metadata(out)["model"]["width"] < IMAGES
  return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """(samples, reference images), .npz files."""
  directory = tmp_path_factory.mktemp("images")
  for name, seed in (("samples", 1), ("real", 2)):
    small = fakes.images(seed, IMAGES, 8)
    pixels = small.repeat(32, axis=1).repeat(32, axis=2)
    np.savez(directory / f"{name}.npz", arr_0=pixels)
  return directory / "samples.npz", directory / "real.npz"


def arguments(command, dinov2, workdir, *rest):
  return [
    command,
    *map(str, rest),
    "--scores=frechet_dinov2",
    f"--dinov2={dinov2}",
    f"--workdir={workdir}",
    "--device-batch=2",
  ]


def scores(workdir):
  (path,) = workdir.glob("*.json")
  return json.loads(path.read_text())


def test_statistics_then_scores(dinov2, files, tmp_path, capsys):
  samples, real = files
  out = tmp_path / "real_stats.npz"
  workdir = tmp_path / "work"
  assert cli.main(arguments("stats", dinov2, workdir, real, out)) == 0
  assert statistics.load(out).count == IMAGES
  assert cli.main(arguments("score", dinov2, workdir, samples, out)) == 0
  with_file = scores(workdir)
  assert cli.main(arguments("score", dinov2, tmp_path / "2", *files)) == 0
  found = scores(tmp_path / "2")["scores"]
  assert found == pytest.approx(with_file["scores"], rel=1e-6)
  assert found["frechet_dinov2"] > 0
  # Images have a floor, their statistics have none.
  assert "floor" not in with_file
  floor = scores(tmp_path / "2")["floor"]
  assert (floor["count"], floor["others"]) == (IMAGES // 2, IMAGES // 2)
  assert floor["scores"]["frechet_dinov2"] > 0
  assert with_file["networks"]["dinov2"]["preprocessing"] == "gmem"
  assert with_file["reference"]["count"] == IMAGES
  said = capsys.readouterr().out
  assert "frechet_dinov2" in said
  (path,) = workdir.glob(f"samples_{IMAGES}_????????.json")
  assert f"Wrote {out}: statistics of {IMAGES} images\n" in said
  assert f"Next: python -m gmem_jax.evaluate score IMAGES {out}\n" in said
  assert f"Wrote {path}, and to {workdir}/tensorboard\nNext: " in said
  assert {p.name for p in workdir.iterdir()} == {path.name, "tensorboard"}
  board = workdir / "tensorboard" / path.stem
  assert tags(board) == {
    f"eval/frechet_dinov2{kind}_{IMAGES}" for kind in ("", "_error")
  }
  (path,) = (tmp_path / "2").glob("*.json")
  tagged = tags(tmp_path / "2" / "tensorboard" / path.stem)
  assert f"eval/frechet_dinov2_floor_{IMAGES}" in tagged


def test_held_out_images_are_a_measure(dinov2, files, tmp_path, capsys):
  held = fakes.images(5, IMAGES, 8).repeat(32, axis=1).repeat(32, axis=2)
  np.savez(tmp_path / "held.npz", arr_0=held)
  given = arguments(
    "score", dinov2, tmp_path / "work", *files,
    "--scores=frechet_dinov2,precision_recall_dinov2",
    f"--heldout={tmp_path}/held.npz",
  )  # fmt: skip
  given.remove("--scores=frechet_dinov2")
  assert cli.main(given) == 0
  found = scores(tmp_path / "work")
  assert found["heldout"]["count"] == IMAGES
  assert 0 < found["scores"]["frechet_ratio"] < 1
  recall = found["scores"]["recall_heldout_dinov2"]
  assert 0 <= recall <= 1
  assert f"recall_heldout_dinov2{recall:17.4f}" in capsys.readouterr().out
  error = refused(capsys, *given, "--scores=kernel_dinov2")
  assert "none is of held-out images" in error


def test_images_reference_and_network_come_from_the_hub(
  dinov2, files, tmp_path
):
  pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
  samples, real = files
  assert cli.main(arguments("score", dinov2, tmp_path / "here", *files)) == 0
  there = "hf://owner/eval"
  with hub_server.serving(tmp_path / "cache") as (handler, environment):
    handler.repos["owner/eval"] = hub_server.files_of(dinov2, "dinov2/") | {
      "samples.npz": samples.read_bytes(),
      "real.npz": real.read_bytes(),
    }
    done = subprocess.run(
      [
        sys.executable, "-m", "gmem_jax.evaluate",
        *arguments(
          "score", f"{there}/dinov2", tmp_path / "there",
          f"{there}/samples.npz", f"{there}/real.npz",
        ),
      ],
      env=os.environ | environment,
      capture_output=True, text=True, check=False,
    )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found, expected = (scores(tmp_path / name) for name in ("there", "here"))
  assert found["scores"] == pytest.approx(expected["scores"], rel=1e-4)


def test_other_images_never_take_the_place_of_a_result(dinov2, files, tmp_path):
  """Not of the same last part, nor of names that differ after a dot."""
  folders = [tmp_path / name for name in ("a/v1.0", "b/v1.0", "a/v1.5")]
  for seed, folder in enumerate(folders):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(np.load(files[0])["arr_0"]):
      Image.fromarray(pixels[:, :: 1 - 2 * (seed % 2)] // (1 + seed)).save(
        folder / f"{i}.png"
      )
  workdir, found = tmp_path / "work", []
  for folder in (*folders, folders[0]):
    given = arguments("score", dinov2, workdir, folder, files[1])
    assert cli.main(given) == 0
    found.append(sorted(p.name for p in workdir.glob("*.json")))
  assert [len(names) for names in found] == [1, 2, 3, 3]
  assert [name.rsplit("_", 2)[0] for name in found[-1]] == [
    "v1.0", "v1.0", "v1.5",
  ]  # fmt: skip
  images = [json.loads(p.read_text())["images"] for p in workdir.glob("*.json")]
  assert {about["folder"] for about in images} == set(map(str, folders))
  assert all(about["formats"] == {"PNG": IMAGES} for about in images)
  assert len(list((workdir / "tensorboard").iterdir())) == 3


def tags(directory):
  """Names of the numbers in TensorBoard's files."""
  found = set()
  for path in directory.iterdir():
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      found |= {value.tag for value in event.summary.value}
      data = data[16 + size :]
  return found


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_evaluation_continues(dinov2, files, tmp_path):
  """SIGKILL once it has noted something, then the same command again."""
  workdir = tmp_path / "work"
  command = [
    sys.executable,
    "-m",
    "gmem_jax.evaluate",
    *arguments("score", dinov2, workdir, *files),
    "--save-every=0",
  ]
  environment = dict(os.environ)
  process = subprocess.Popen(
    command, cwd=tiny.ROOT, env=environment, stderr=subprocess.DEVNULL
  )
  while process.poll() is None and not list(workdir.rglob("tally.npz")):
    time.sleep(0.002)
  process.kill()
  process.wait()
  partial = list(workdir.rglob("tally.npz"))
  assert partial, "it was done before it could be killed"
  assert not list(workdir.glob("*.json"))
  with np.load(partial[0]) as arrays:
    assert 0 < arrays["done"] <= IMAGES
  result = subprocess.run(
    command,
    cwd=tiny.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert not list(workdir.rglob("tally.npz"))
  whole = tmp_path / "whole"
  assert cli.main(arguments("score", dinov2, whole, *files)) == 0
  # The processes have other numbers of devices, so the last bits may differ.
  assert scores(workdir)["scores"] == pytest.approx(
    scores(whole)["scores"], rel=1e-6
  )


def refused(capsys, *given):
  assert cli.main([str(g) for g in given]) == 2
  return capsys.readouterr().err


def test_missing_weights_say_where_to_get_them(files, tmp_path, capsys):
  error = refused(
    capsys, "score", *files, f"--inception={tmp_path}/gone",
    f"--workdir={tmp_path}",
  )  # fmt: skip
  assert "--inception=" in error
  assert "does not exist" in error
  assert f"gmem_jax.convert {networks.INCEPTION_FILE} weights/inc" in error
  assert "https://" in error


def test_other_weights_are_refused(dinov2, files, tmp_path, capsys):
  error = refused(capsys, "score", *files, f"--inception={dinov2}")
  assert "it is a dinov2, not a inception" in error


@pytest.mark.parametrize(
  ("extra", "match"),
  [
    (["--scores=fud"], "['fud']: at least one of"),
    (["--scores=frechet"], "--mode=evaluate"),
    (["--count=20"], "too few for a covariance"),
    (["--count=1000"], f"there are {IMAGES}"),
    (["--device-batch=0"], "must be positive"),
    (["--repeats=1"], "--repeats=1: 0, or at least 2"),
    (["--repeats=-1"], "--repeats=-1: 0, or at least 2"),
  ],
)
def test_bad_arguments(dinov2, files, tmp_path, capsys, extra, match):
  given = arguments("score", dinov2, tmp_path, *files)
  assert match in refused(capsys, *given, *extra)
  assert not list(tmp_path.glob("*.json"))


def test_a_reference_is_needed(dinov2, files, tmp_path, capsys):
  given = arguments("score", dinov2, tmp_path, files[0])
  assert "frechet_dinov2: a reference is needed" in refused(capsys, *given)


def test_small_images_are_refused(dinov2, tmp_path, capsys):
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(0))
  given = arguments("score", dinov2, tmp_path, *[tmp_path / "x.npz"] * 2)
  assert "at least 256 pixels wide" in refused(capsys, *given)


def test_statistics_are_not_overwritten(dinov2, files, tmp_path, capsys):
  (tmp_path / "x.npz").write_bytes(b"precious")
  given = arguments("stats", dinov2, tmp_path, files[0], tmp_path / "x.npz")
  assert "already exists" in refused(capsys, *given)
  assert (tmp_path / "x.npz").read_bytes() == b"precious"


def test_latents_are_decoded_only_when_asked_for(dinov2, tmp_path, capsys):
  prepared.write(tmp_path / "data")
  given = arguments(
    "stats", dinov2, tmp_path, tmp_path / "data", tmp_path / "x.npz"
  )
  assert "holds latents, no images" in refused(capsys, *given)
  error = refused(capsys, *given, "--decode=/gone")
  assert "--decode='/gone'" in error
  assert "does not exist" in error


@pytest.mark.parametrize(
  "given",
  [
    ["score", "~/a", "~/b"],
    ["stats", "~/a", "~/b", "--decode=~/c", "--inception=~/d"],
    ["stats", "~/a", "~/b", "--dinov2=~/c", "--workdir=~/d"],
  ],
)
def test_paths_may_begin_at_home(monkeypatch, given):
  monkeypatch.setenv("HOME", "/home/me")
  values = vars(cli._parser().parse_args(given)).values()
  texts = [value for value in values if isinstance(value, str)]
  assert not [text for text in texts if "~" in text]
  assert len([text for text in texts if text.startswith("/home/me/")]) == (
    len(given) - 1
  )
