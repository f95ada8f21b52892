"""The config: all of its keys, as frozen dataclasses.

`Config` is a whole run. The sections of networks and training are beside it in
`networks` and `training`; path, loss, sampler and mesh have theirs with the
code that they are for. Checks of one section are in the section, checks between
sections in `resolve`.
"""

import dataclasses
from typing import Literal

from gmem_jax.config import checks, networks, thresholds, training
from gmem_jax.diffusion import losses, schedule
from gmem_jax.parallel import sharding

# How prepared data keeps latents and the projection's targets.
Latents = Literal["posterior", "sample"]
Tokens = Literal["bf16", "int8", "pixels", "none"]
# How the path between two memories goes.
Interpolation = Literal["linear", "spherical", "concat", "mask"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The images, and how `--mode=prepare` stores what encoders make of them.

  Numbers in brackets are bytes for ImageNet at 256 px with latents="sample", as
  a share of the published features' 1.645 MB an image; "posterior" adds .02.

  Attributes:
    source: "folder": image files in any nesting; "tfds": a TFDS data set;
      "digits": scikit-learn's handwritten digits; "upstream": the published
      code's .safetensors features, which need no preparation; "none": no
      images, the config can only sample.
    path: Folder of "folder" and "upstream"; data_dir of "tfds" ("" for TFDS's
      default).
    tfds: Name of the TFDS data set, e.g. "imagenet2012".
    split: Split of the TFDS data set.
    prepared: Directory that `--mode=prepare` writes and training reads. "" with
      "digits": encoded in memory when training starts.
    truncated: What becomes of JPEG images that end too soon. "skip": they are
      left out, named and counted, as other damaged images always are; "fill":
      what is missing is filled in, so that the rows after them stay those of a
      bank that has them.
    holdout: Images kept out of training and bank, drawn at random. Of prepared
      data they are in `prepared`/heldout, which `sample.bank` can name.
    holdout_groups: Classes (first folders, digits) that are kept out whole,
      besides; patterns, as "animal-*".
    mirror: Whether mirror images are also prepared and trained on.
    latents: "posterior": mean and log-variance, so that every epoch draws new
      latents; "sample": one draw, as published.
    tokens: Targets of the projection loss. "bf16": as they are (.50); "int8":
      with a scale for each token (.26), which rotates Gaussian tokens by
      1 - cos < 2e-4; "pixels": the training step runs the feature encoder on
      uint8 pixels (.14), about 6 % more arithmetic for an XL; "none": no
      projection loss.
    shard_size: Images in a shard; a kill costs the shards being written.
    device_batch: Images in one call of the frozen networks on each device.
    independent_flips: As published, latent, tokens and feature of an example
      have a flip flag each; otherwise they share one.
  """

  source: Literal["folder", "tfds", "digits", "upstream", "none"]
  path: checks.FilePath
  tfds: str
  split: str
  prepared: checks.FilePath
  truncated: Literal["skip", "fill"]
  holdout: int
  holdout_groups: tuple[str, ...]
  mirror: bool
  latents: Latents
  tokens: Tokens
  shard_size: int
  device_batch: int
  independent_flips: bool

  def __post_init__(self):
    checks.positive("data", self, "shard_size", "device_batch")
    for key, sources in (
      ("path", ("folder", "upstream")),
      ("tfds", ("tfds",)),
      ("split", ("tfds",)),
      ("prepared", ("folder", "tfds")),
    ):
      if self.source in sources and not getattr(self, key):
        raise ValueError(
          f"config.data.{key} is empty: it is needed with config.data.source="
          f"{self.source!r}"
        )
    # These have no images of their own.
    if self.source in ("upstream", "none"):
      for key, nothing in (("holdout", 0), ("holdout_groups", ())):
        if getattr(self, key) != nothing:
          raise ValueError(
            f"config.data.{key}={getattr(self, key)}: must be {nothing} with"
            f" config.data.source={self.source!r}"
          )
    # Without mirror images there is only one view to choose.
    if self.independent_flips and not self.mirror:
      raise ValueError(
        "config.data.independent_flips=True needs config.data.mirror=True"
      )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """What `--mode=sample` makes.

  Attributes:
    seed: Image i depends on (seed, i) alone.
    count: Number of images; `rows`, --image and --interpolate decide it
      together with `per_row`.
    batch_size: Images generated and written at a time, over all devices.
    device_batch: Images in one call of the compiled sampler on each device; the
      last call is filled up. Compilers choose kernels by shape, so the last
      bits of an image may depend on this number, and on no other one here.
    weights: Parameters of the run to use: "ema" or "params".
    network: Converted weights of a network; "" for the run's newest checkpoint.
    bank: A converted bank; "" for the run's, or the one stored with `network`.
    draw: How an image gets its memory: "uniform" or "noise" draws a row of the
      bank (from the image's own noise, by the frequencies in the bank; first
      release); "prior" reads no bank, and takes what `--mode=prior` learned.
    rows: Bank rows to sample from, in order; () to draw them.
    per_row: Samples of each row, image or point between memories.
    format: "png" (a folder of images), "npz" (one file in the layout of the ADM
      evaluation: arr_0, uint8 [n H W 3]) or "both".
    grid: Images in the contact sheet grid.png; 0 for none.
    output: Directory of the images; "" for one in the run's directory. With
      another one, nothing is written into the run, so it may be read-only.
    interpolation: Method of --interpolate.
    points: Snippets of --interpolate, including both ends ("concat" has one).
    reading: How --image and --interpolate read image files: "bank" as the bank
      was built, but turned as their EXIF orientation says; "published" as the
      published manipulation does, which shows the encoder a washed-out image.
    dtype: Of the network's matmuls when it samples, whatever it was trained in.
      Published samples are float32.
    precision: How accelerators multiply float32. "high": TF32 on GPUs, as
      published, and three passes of bfloat16 on TPUs; "highest": float32;
      "default": one pass on TPUs.
    decode_dtype: Of the tokenizer's matmuls and convolutions when it decodes;
      encoding is always float32.
    group: Group of the bank's rows that the prior's memories are of; "": each
      is of one that is drawn, by the number of its rows.
  """

  seed: int
  count: int
  batch_size: int
  device_batch: int
  weights: Literal["ema", "params"]
  network: checks.FilePath
  bank: checks.FilePath
  draw: Literal["uniform", "noise", "prior"]
  rows: tuple[int, ...]
  per_row: int
  format: Literal["png", "npz", "both"]
  grid: int
  output: checks.FilePath
  interpolation: Interpolation
  points: int
  reading: Literal["bank", "published"]
  dtype: Literal["float32", "bfloat16"]
  precision: Literal["default", "high", "highest"]
  decode_dtype: Literal["float32", "bfloat16"]
  group: str = ""

  def __post_init__(self):
    checks.seed("sample.seed", self.seed)
    checks.positive("sample", self, "count", "batch_size", "device_batch")
    checks.positive("sample", self, "per_row", "points")
    checks.not_negative("sample", self, "grid")
    if any(row < 0 for row in self.rows):
      raise ValueError(
        f"config.sample.rows={self.rows}: bank rows are numbered from 0"
      )
    # The noise of image i decides its row: nothing is left to choose.
    if self.draw == "noise" and (self.rows or self.per_row > 1):
      raise ValueError(
        "config.sample.draw='noise' lets every image choose its row, so"
        f" config.sample.rows={self.rows} must be () and"
        f" config.sample.per_row={self.per_row} must be 1"
      )
    self._check_prior()
    # The others do not divide a path: "concat" has one snippet, "mask" any.
    if self.interpolation in ("linear", "spherical") and self.points < 2:
      raise ValueError(
        f"config.sample.points={self.points}: must be at least 2 with"
        f" config.sample.interpolation={self.interpolation!r}"
      )

  def _check_prior(self) -> None:
    if self.draw != "prior":
      if self.group:
        raise ValueError(
          f"config.sample.group={self.group!r}: must be '' unless"
          " config.sample.draw='prior'"
        )
      return
    for key, nothing in (("bank", ""), ("rows", ())):
      if (value := getattr(self, key)) != nothing:
        raise ValueError(
          f"config.sample.draw='prior' reads no bank: config.sample.{key}="
          f"{value!r} must be {nothing!r}"
        )


# What images are scored by; `gmem_jax.evaluate.scores` says how.
Score = Literal[
  "fid",
  "sfid",
  "inception_score",
  "precision_recall",
  "precision_recall_dinov2",
  "precision_recall_classifier",
  "kid",
  "mind",
  "mmd_inception",
  "frechet_dinov2",
  "kernel_dinov2",
  "sliced_dinov2",
  "mmd_dinov2",
  "frechet",
  "kernel",
  "sliced",
  "mmd",
]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation, during training and by `--mode=evaluate`.

  Attributes:
    every: Steps between evaluations; 0: only at the end.
    count: Images sampled for one evaluation during training; `--mode=evaluate`
      scores the images that `--mode=sample` would write.
    grid: Images in the picture of samples.
    scores: What to measure; () for nothing during training. "fid", "sfid",
      "inception_score" and "precision_recall" as defined by the ADM suite
      (precision and recall also in the other features);
      "kid", "mind" and "mmd_inception": kernel, sliced and CMMD's distance in
      the same features; "frechet_dinov2", "kernel_dinov2", "sliced_dinov2" and
      "mmd_dinov2": the four distances in the features of
      `encoder.features_weights`; "frechet", "kernel", "sliced" and "mmd": in
      those of a small classifier of the run's own images, for digits.
    thresholds: Scores to reach, as "fid<=5" or "recall>=0.6": the epochs, steps
      and images until the first evaluation that is as good are reported.
    reference: What to compare with: ADM's .npz, statistics written by
      `python -m gmem_jax.evaluate stats`, a folder or an .npz of images, or
      prepared data that holds images; "" for the run's own training images, if
      they are in memory.
    heldout: Images that were never trained on, named as the reference is:
      `--mode=evaluate` then says how many of them samples recall, and how far
      samples are beside them; "" for the run's own, if they are in memory.
    inception_weights: Converted weights of FID's network.
    preprocessing: How images are resized for it: "adm" as in the ADM suite,
      "pytorch_fid" as in pytorch-fid, "published" as in pytorch-fid with ADM's
      reference, like the published evaluation of GMem.
    device_batch: Images in one call of these networks on each device.
    images: A folder or an .npz to score instead of samples; "" for samples.
    keep_images: Keep the samples as `--mode=sample` would write them.
    save_every: Seconds between saves of an evaluation's progress, from which it
      continues after a kill.
    repeats: Random halves of the images that give each score its standard
      error, and random splits of real images that give `--mode=evaluate` its
      floor, where there are real images; 0 for neither.
    audit: Samples whose nearest training images `--mode=evaluate` looks up; 0
      for none.
  """

  every: int
  count: int
  grid: int
  scores: tuple[Score, ...]
  thresholds: tuple[str, ...]
  reference: checks.FilePath
  heldout: checks.FilePath
  inception_weights: checks.FilePath
  preprocessing: Literal["adm", "pytorch_fid", "published"]
  device_batch: int
  images: checks.FilePath
  keep_images: bool
  save_every: float
  repeats: int
  audit: int

  def __post_init__(self):
    checks.positive("eval", self, "count", "grid", "device_batch")
    checks.not_negative("eval", self, "every", "audit", "save_every", "repeats")
    for text in self.thresholds:
      thresholds.parse(text)
    if self.repeats == 1:
      raise ValueError("config.eval.repeats=1: one has no spread; take 0 or 10")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """The report at the end of a run.

  Attributes:
    unconditional: Also train the same network without memory, for as many
      steps, and compare.
  """

  unconditional: bool


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run; each section says what its keys mean.

  Attributes:
    seed: Seed of parameters, data order, noise and encoders.
    compile_cache: Directory of compiled programs, which the next start loads; a
      relative path is in the run's directory (nothing is kept there while
      `sample.output` is elsewhere), "" keeps none. The environment's
      JAX_COMPILATION_CACHE_DIR wins.
  """

  seed: int
  compile_cache: checks.FilePath
  data: DataConfig
  encoder: networks.EncoderConfig
  bank: networks.BankConfig
  model: networks.ModelConfig
  retrieval: networks.RetrievalConfig
  loss: losses.LossConfig
  optim: training.OptimConfig
  train: training.TrainConfig
  mesh: sharding.MeshConfig
  checkpoint: training.CheckpointConfig
  sampler: schedule.SamplerConfig
  sample: SampleConfig
  eval: EvalConfig
  log: training.LogConfig
  report: ReportConfig
  prior: training.PriorConfig = training.PRIOR

  def __post_init__(self):
    checks.seed("seed", self.seed)
