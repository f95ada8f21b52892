"""Images to prepared data: what is kept, what is skipped, what is refused."""

import dataclasses
import io
import json
import resource
import shutil
import struct
import zlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python import array_record_data_source
from PIL import ExifTags, Image

from gmem_jax.bank import files as bank_files
from gmem_jax.data import (
  decode_image,
  encode as encode_lib,
  prepare,
  prepare_join,
  schema as schema_lib,
  sources,
  store,
)
from gmem_jax.files import atomic, disk, errors
from gmem_jax.models.encoders import protocols, random_conv, vae

pytestmark = pytest.mark.filterwarnings(
  "ignore:Palette images with Transparency"
)

SIZE = 16
# Of the networks that all tests share, so that they are compiled once.
SETTINGS = {"latents": "sample", "tokens": "int8", "mirrored": True}


@pytest.fixture(scope="module")
def networks():
  return encode_lib.Encoders(
    protocols.IdentityTokenizer(),
    random_conv.make(0, 3),
    seed=0,
    device_batch=1,
    **SETTINGS,
  )


def make_schema(source, networks, **changes) -> schema_lib.Schema:
  schema = schema_lib.Schema(
    version=schema_lib.VERSION,
    latent_shape=(SIZE, SIZE, 3),
    token_shape=networks.token_shape((SIZE, SIZE, 3)),
    feature_width=768,
    image_shape=(SIZE, SIZE, 3),
    images=len(source),
    shard_size=7,
    tokenizer={"name": "identity"},
    features={"name": "random_conv(seed=0)"},
    source=source.info(),
    seed=0,
    **SETTINGS,
  )
  return dataclasses.replace(schema, **changes)


def png(image: Image.Image, form: str = "PNG", **options) -> bytes:
  data = io.BytesIO()
  image.save(data, form, **options)
  return data.getvalue()


def orientation(value: int) -> Image.Exif:
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = value
  return exif


def bomb(side: int) -> bytes:
  """A PNG of a few bytes that claims side x side pixels."""

  def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc

  header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(bytes(99)))
    + chunk(b"IEND", b"")
  )


def zoo(root) -> dict[str, str]:
  """Every kind of file; returns name -> reason of those to be skipped."""
  random = np.random.default_rng(0)
  rgb = Image.fromarray(random.integers(0, 255, (30, 40, 3), np.uint8))
  deep = random.integers(0, 65535, (30, 40)).astype(np.uint16)
  turned = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  animation = {"save_all": True, "append_images": [turned]}
  jpeg, whole = png(rgb, "JPEG"), png(rgb)
  good = {
    "a/rgb.jpg": jpeg,
    "a/deep/er/rgb.PNG": whole,
    "a/rgb.webp": png(rgb, "WEBP"),
    "a/png_named.jpeg": whole,
    "b/animated.webp": png(rgb, "WEBP", **animation),
    "b/animated.png": png(rgb, **animation),
    "b/bits.png": png(rgb.convert("1")),
    "b/cmyk.jpg": png(rgb.convert("CMYK"), "JPEG"),
    "b/grey.jpg": png(rgb.convert("L"), "JPEG"),
    "b/grey16.png": png(Image.fromarray(deep)),
    "b/palette.png": png(rgb.convert("P"), transparency=b"\x00\x80"),
    "b/rgba.png": png(rgb.convert("RGBA")),
    "b/turned.jpg": png(rgb, "JPEG", exif=orientation(6)),
    "tiny.png": png(rgb.resize((3, 2))),
  }
  bad = {
    "a/empty.jpg": (b"", "no image"),
    "a/text.jpg": (b"hello", "no image"),
    "a/tiff_named.jpg": (png(rgb, "TIFF"), "no image"),
    "a/cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
    "b/cut.png": (whole[: len(whole) // 2], "truncated"),
    "b/header.png": (whole[:20], "damaged"),
    "b/bomb.png": (bomb(100_000), "decompression bomb"),
    "b/bomb_small.png": (bomb(14_000), "decompression bomb"),
    "b/narrow.png": (png(Image.new("L", (2, 6_000_000))), "too narrow"),
    "one.png": (png(rgb.resize((1, 1))), "nothing to see"),
  }
  others = {"a/notes.txt": b"x", "b/old.tif": b"x", "b/._rgb.jpg": b"x"}
  files = good | {n: data for n, (data, _) in bad.items()} | others
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  (root / "a" / "gone.jpg").symlink_to("nowhere")
  (root / "a" / "loop").symlink_to("..")
  return {n: reason for n, (_, reason) in bad.items()} | {
    "a/gone.jpg": "cannot be read: No such file"
  }


@pytest.fixture(scope="module")
def prepared(networks, tmp_path_factory):
  """A directory made of every kind of file."""
  base = tmp_path_factory.mktemp("zoo")
  bad = zoo(base / "images")
  source = sources.Folder(base / "images", SIZE)
  schema = make_schema(source, networks)
  report = prepare.write_store(base / "out", schema, source, networks)
  return base / "out", source, report, bad


def test_bad_images_are_named_and_counted(prepared):
  directory, source, report, bad = prepared
  skipped = {one["name"]: one["reason"] for one in report["skipped"]}
  assert skipped.keys() == bad.keys()
  for name, reason in bad.items():
    assert reason in skipped[name], (name, skipped[name])
  assert report["images"] == len(source) - len(bad) == 14
  assert sorted(one["name"] for one in report["noted"]) == [
    "b/animated.png",
    "b/animated.webp",
  ]
  assert report["ignored"] == {".tif": 1, ".txt": 1, "hidden": 1}
  assert report["rotated_by_exif"] == 1
  text = prepare_join.describe(directory, report)
  assert "a/cut.jpg" in text
  assert report["bank"] in text
  assert "rotated  1 by EXIF" in text
  # As in data from before it was counted.
  old = {k: v for k, v in report.items() if k != "rotated_by_exif"}
  assert "rotated" not in prepare_join.describe(directory, old)


def test_rows_records_and_images_stay_aligned(prepared, networks):
  directory, source, report, bad = prepared
  opened = store.open_store(directory)
  names = [name for name in source.names if name not in bad]
  assert opened.images == len(names) == report["images"]
  layout = schema_lib.layout(opened.schema)
  records = array_record_data_source.ArrayRecordDataSource(
    [str(shard.path) for shard in opened.shards]
  )
  assert len(records) == 2 * len(names)
  assert bank_files.read(directory).images.names == tuple(names)
  encoder = random_conv.make(0, 3)
  rows = opened.bank_rows()
  for i, name in enumerate(names):
    with Image.open(source.root / name) as image:
      pixels = np.asarray(image.convert("RGB"))
    if name == "b/grey16.png":  # Pillow clips these to white.
      pixels = source.read(source.names.index(name)).pixels
      assert 50 < pixels.mean() < 200
    pixels = decode_image.center_crop(pixels, SIZE)
    for view in range(2):
      record, inside = opened.schema.locate(i, view)
      values = schema_lib.decode(layout, records[record], inside)
      seen = pixels[:, ::-1] if view else pixels
      floats = np.float32(seen) / 127.5 - 1
      np.testing.assert_allclose(
        np.float32(values["latent"]), floats, atol=2**-8, err_msg=name
      )
      expected = {"a": 0, "b": 1}.get(name.split("/")[0], -1)
      assert int(values["label"]) == expected
      if view == 0:
        feature = encoder(jnp.asarray(floats)[None])[0][0]
        np.testing.assert_allclose(rows[i], feature, atol=1e-5, err_msg=name)


def test_statistics_are_those_of_the_images_as_they_are(prepared):
  directory, source, _, bad = prepared
  pixels = [
    decode_image.center_crop(source.read(i).pixels, SIZE)
    for i, name in enumerate(source.names)
    if name not in bad
  ]
  floats = np.float32(np.stack(pixels)).reshape(-1, 3) / 127.5 - 1
  floats = floats.astype(schema_lib.BFLOAT16).astype(np.float64)  # as stored
  opened = store.open_store(directory)
  np.testing.assert_allclose(opened.mean, floats.mean(axis=0), atol=1e-5)
  np.testing.assert_allclose(opened.std, floats.std(axis=0, ddof=1), rtol=1e-5)


def test_nothing_but_whole_files_is_left(prepared):
  directory, *_ = prepared
  found = {str(p.relative_to(directory)) for p in directory.rglob("*.*")}
  names = (
    "schema.json statistics.json report.json bank/rows.npy bank/info.json"
    " bank/images.json"
  )
  shards = {
    f"train-{i:05d}-of-00004.{end}"
    for i in range(4)
    for end in ("json", "array_record")
  }
  assert found == set(names.split()) | shards
  schema = json.loads((directory / "schema.json").read_text())
  assert schema["made_on"] == {"backend": "cpu", "device": "cpu"}


def test_an_empty_folder_says_so(tmp_path):
  (tmp_path / "notes.txt").write_text("x")
  with pytest.raises(ValueError, match=r"config\.data\.path=.*no image.*\.txt"):
    sources.Folder(tmp_path, SIZE)
  with pytest.raises(ValueError, match=r"cannot list .*: No such file"):
    sources.Folder(tmp_path / "nowhere", SIZE)


def test_filled_images_keep_the_rows_after_them_in_place(tmp_path, networks):
  random = np.random.default_rng(0)
  (tmp_path / "in").mkdir()
  for i in range(4):
    noise = random.integers(0, 255, (30, 40, 3), np.uint8)
    data = png(Image.fromarray(noise), "JPEG")
    data = data[: len(data) // 2] if i == 1 else data
    (tmp_path / "in" / f"{i}.jpg").write_bytes(data)
  rows, reports = {}, {}
  for fill in (False, True):
    source = sources.Folder(tmp_path / "in", SIZE, fill=fill)
    schema, out = make_schema(source, networks), tmp_path / str(fill)
    reports[fill] = prepare.write_store(out, schema, source, networks)
    rows[fill] = store.open_store(out).bank_rows()
  assert [s["name"] for s in reports[False]["skipped"]] == ["1.jpg"]
  assert reports[True]["skipped"] == []
  assert reports[True]["noted"] == [
    {"name": "1.jpg", "note": decode_image.FILLED}
  ]
  np.testing.assert_array_equal(rows[True][[0, 2, 3]], rows[False])
  # What was skipped is not filled in afterwards without a word.
  with pytest.raises(
    ValueError, match=r"other data:\n.*truncated: .* 'fill' now"
  ):
    prepare.write_store(tmp_path / "False", schema, source, networks)


def test_no_readable_image_says_so(tmp_path, networks):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "x.jpg").write_text("hello")
  source = sources.Folder(tmp_path / "in", SIZE)
  schema = make_schema(source, networks)
  with pytest.raises(
    ValueError, match=r"no image can be used:\n *x.jpg: no im"
  ):
    prepare.write_store(tmp_path / "out", schema, source, networks)
  assert not list((tmp_path / "out").iterdir())
  # Mended, it is read anew; so would be other images.
  write_noise(tmp_path / "in", ["x.jpg"], seed=0)
  report = prepare.write_store(tmp_path / "out", schema, source, networks)
  assert (report["images"], report["skipped"]) == (1, [])


def write_noise(folder, names, seed):
  """JPEG files of noise."""
  folder.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng(seed)
  for name in names:
    noise = random.integers(0, 255, (20, 20, 3), np.uint8)
    (folder / name).write_bytes(png(Image.fromarray(noise), "JPEG"))


def test_files_of_the_same_names_are_not_mixed(tmp_path, networks):
  names = [f"{i}.jpg" for i in range(8)]
  roots = [tmp_path / name / "images" for name in ("a", "b", "moved")]
  for seed, root in enumerate(roots[:2]):
    write_noise(root, names, seed)
  first, other, moved = (sources.Folder(root, SIZE) for root in (
    roots[0], roots[1], shutil.copytree(roots[0], roots[2])))  # fmt: skip
  out, schema = tmp_path / "out", make_schema(first, networks)
  assert make_schema(other, networks) == schema
  report = prepare.write_store(out, schema, first, networks)
  before = contents(out)
  match = "was made of other files of the same names: name another directory$"
  with pytest.raises(ValueError, match=match):
    prepare.write_store(out, schema, other, networks)
  assert prepare.write_store(out, schema, moved, networks) == report
  assert contents(out) == before
  # Of an unfinished one, what is of other files can be made again.
  unfinished = out / store.REPORT
  unfinished.unlink()
  (roots[0] / "7.jpg").write_bytes((roots[1] / "7.jpg").read_bytes())
  match = (
    r"or remove train-00001-of-00002\.json there to have these made again$"
  )
  with pytest.raises(ValueError, match=match):
    prepare.write_store(out, schema, first, networks)


def test_data_from_before_files_were_told_apart_are_taken(tmp_path, networks):
  write_noise(tmp_path / "in", ["0.jpg"], seed=0)
  source = sources.Folder(tmp_path / "in", SIZE)
  schema, out = make_schema(source, networks), tmp_path / "out"
  report = prepare.write_store(out, schema, source, networks)
  facts = out / "train-00000-of-00001.json"
  old = {k: v for k, v in atomic.read_json(facts).items() if k != "files"}
  atomic.write_json(facts, old)
  write_noise(tmp_path / "in", ["0.jpg"], seed=1)
  assert prepare.write_store(out, schema, source, networks) == report


@pytest.fixture
def arrays():
  random = np.random.default_rng(1)
  pixels = random.integers(0, 255, (20, SIZE, SIZE, 3), np.uint8)
  return sources.Images(pixels, np.arange(20, dtype=np.int32), "noise")


def test_a_full_disk_keeps_what_is_whole(tmp_path, networks, arrays):
  schema = make_schema(arrays, networks)
  out = tmp_path / "out"

  class FullLater(type(networks)):
    """The disk is full when the second shard is encoded."""

    def __call__(self, pixels, numbers):
      if numbers[0] >= schema.shard_size:
        _limit_files(10_000)
      return networks(pixels, numbers)

  full = FullLater.__new__(FullLater)
  full.__dict__ = networks.__dict__
  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(
      OSError, match=r"cannot be written: .*too large.*same"
    ) as error:
      prepare.write_store(out, schema, arrays, full)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
  # One line, and known as a full disk: a launcher starts the command again.
  assert disk.is_full(error.value)
  assert "\n" not in errors.describe(error.value)
  first = schema.shard_name(0)
  assert {str(p.relative_to(out)) for p in out.rglob("*.*")} == {
    "schema.json",
    f"{first}.array_record",
    f"{first}.json",
    f"bank/{first}.npy",
  }
  with pytest.raises(ValueError, match="not finished"):
    store.open_store(out)
  # With room again, the result is that of an undisturbed run.
  prepare.write_store(out, schema, arrays, networks)
  prepare.write_store(tmp_path / "whole", schema, arrays, networks)
  assert contents(out) == contents(tmp_path / "whole")


def _limit_files(size: int) -> None:
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def contents(directory) -> dict[str, bytes]:
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


def test_too_small_a_disk_is_refused_at_once(
  tmp_path, networks, arrays, monkeypatch
):
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(ValueError, match="1 kB are free"):
    prepare.write_store(
      tmp_path, make_schema(arrays, networks), arrays, networks
    )
  assert list(tmp_path.iterdir()) == []


def test_nan_of_a_network_names_the_image(tmp_path, networks, arrays):
  class Broken(type(networks)):
    def __call__(self, pixels, numbers):
      found = dict(networks(pixels, numbers))
      found["row"] = found["row"].at[1].set(jnp.nan)
      return found

  broken = Broken.__new__(Broken)
  broken.__dict__ = networks.__dict__
  with pytest.raises(ValueError, match=r"NaN or infinity for noise/1: the wei"):
    prepare.write_store(tmp_path, make_schema(arrays, networks), arrays, broken)


def test_another_directory_is_refused(prepared, networks, arrays):
  directory, *_ = prepared
  before = contents(directory)
  schema = make_schema(arrays, networks, tokens="bf16")
  with pytest.raises(
    ValueError, match=r"other data:\n(  .*\n)+  tokens: 'int8' there"
  ):
    prepare.write_store(directory, schema, arrays, networks)
  assert contents(directory) == before


def test_finished_data_are_left_alone(prepared, networks):
  directory, source, report, _ = prepared
  before = contents(directory)
  schema = make_schema(source, networks)
  again = prepare.write_store(directory, schema, source, networks)
  assert again == report
  assert contents(directory) == before


def test_damage_is_named(prepared, networks, arrays, tmp_path):
  directory, *_ = prepared
  copy = tmp_path / "copy"

  def damaged(name, change) -> str:
    for path, data in contents(directory).items():
      target = copy / path
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(change(data) if path == name else data)
    with pytest.raises(ValueError) as error:  # noqa: PT011
      store.open_store(copy)
    return str(error.value)

  shard = "train-00001-of-00004"
  assert "has 9 bytes" in damaged(f"{shard}.array_record", lambda d: d[:9])
  assert "of schema version 2" in damaged(
    "schema.json", lambda d: d.replace(b'"version": 1', b'"version": 2')
  )
  assert "schema.json is damaged" in damaged("schema.json", lambda d: d[:50])
  assert "do not fit" in damaged(
    "schema.json", lambda d: d.replace(b'"offset": 0', b'"offset": 8')
  )
  assert "other networks" in damaged(
    "schema.json", lambda d: d.replace(b'"identity"', b'"va_vae"')
  )
  (copy / f"{shard}.array_record").unlink()
  (copy / "schema.json").write_bytes((directory / "schema.json").read_bytes())
  with pytest.raises(ValueError, match=rf"{shard}\.array_record is missing"):
    store.open_store(copy)


def test_tokens_in_8_bits_point_the_same_way():
  tokens = np.random.default_rng(0).standard_normal((2, 64, 768))
  quantise = jax.jit(encode_lib.quantise)
  rounded, scales = quantise(jnp.float32(tokens))
  back = np.float32(rounded) * np.asarray(scales)[..., None]
  assert np.abs(back - tokens).max() <= 0.5001 * np.asarray(scales).max()
  cosine = (back * tokens).sum(-1) / (
    np.linalg.norm(back, axis=-1) * np.linalg.norm(tokens, axis=-1)
  )
  assert 1 - cosine.min() < 2e-4
  zero, _ = quantise(jnp.zeros((1, 1, 4)))
  assert not np.asarray(zero).any()


@pytest.mark.parametrize("tokens", ["bf16", "int8", "pixels", "none"])
@pytest.mark.parametrize("latents", ["posterior", "sample"])
def test_records_are_as_small_as_promised(tokens, latents):
  """Bytes of an image at 256 px, against the published 1,644,552."""
  schema = schema_lib.Schema(
    1, latents, tokens, True, (16, 16, 32), (256, 768), 768, (256, 256, 3),
    10, 4, {}, {}, {}, 0,
  )  # fmt: skip
  layout = schema_lib.layout(schema)
  share = (layout.size * schema.records_per_image + 4 * 768) / 1_644_552
  promised = {"bf16": 0.50, "int8": 0.26, "pixels": 0.14, "none": 0.02}
  extra = 0.02 if latents == "posterior" else 0
  assert share == pytest.approx(promised[tokens] + extra, abs=0.006)
  random = np.random.default_rng(0)
  values = {
    name: random.integers(0, 100, field.shape).astype(field.dtype)
    for name, field in layout.fields.items()
  }
  record = schema_lib.encode(layout, values)
  for name, value in schema_lib.decode(layout, record).items():
    np.testing.assert_array_equal(value, values[name])
    assert value.base is not None  # a view, not a copy
  with pytest.raises(ValueError, match="another schema"):
    schema_lib.decode(layout, record + b"0")


@flax.struct.dataclass
class Tokenizer(vae.VAETokenizer):
  """Pixels with a posterior around them."""

  def posterior(self, images):
    return vae.Posterior(images, jnp.full(images.shape, np.log(0.25)))


def test_draws_do_not_depend_on_the_batch():
  tokenizer = Tokenizer("pixels", vae.VARIANTS["va_vae"], {})
  encoder = random_conv.make(0, 3)
  random = np.random.default_rng(0)
  images = random.integers(0, 255, (4, SIZE, SIZE, 3), np.uint8)

  def encode(numbers, latents):
    found = encode_lib.encode(
      tokenizer, encoder, images[numbers], np.int32(numbers), latents,
      "none", True, 0,
    )  # fmt: skip
    return jax.device_get(found)

  drawn, others = encode([0, 1, 2, 3], "sample"), encode([2, 3, 3, 0], "sample")
  np.testing.assert_array_equal(drawn["latent"][2], others["latent"][0])
  floats = np.float32(images) / 127.5 - 1
  views = np.stack([floats, floats[:, :, ::-1]], axis=1)
  noise = 2 * (np.float32(drawn["latent"]) - views)
  assert abs(noise.mean()) < 0.05
  assert noise.std() == pytest.approx(1, abs=0.05)
  # The mirror image has a draw of its own, and so has every image.
  assert abs(np.corrcoef(noise.reshape(8, -1)) - np.eye(8)).max() < 0.15
  assert abs((noise[:, 0] * noise[:, 1][:, :, ::-1]).mean()) < 0.1

  stored = encode([0, 1, 2, 3], "posterior")
  np.testing.assert_allclose(np.float32(stored["mean"]), views, atol=2**-8)
  np.testing.assert_allclose(
    np.float32(stored["logvar"]), np.log(0.25), rtol=2**-8
  )
