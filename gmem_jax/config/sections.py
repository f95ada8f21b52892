"""The config: all of its keys, as frozen dataclasses.

`Config` is a whole run. The sections of networks and training are beside it in
`networks` and `training`; path, loss, sampler and mesh have theirs with the
code that they are for. Checks of one section are in the section, checks between
sections in `resolve`.
"""

import dataclasses
from typing import Literal

from gmem_jax.config import checks, networks, training
from gmem_jax.diffusion import losses, schedule
from gmem_jax.parallel import sharding

# How prepared data keeps latents and the projection's targets.
Latents = Literal["posterior", "sample"]
Tokens = Literal["bf16", "int8", "pixels", "none"]
# How the path between two memories goes.
Interpolation = Literal["linear", "spherical", "concat", "mask"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The images, and how `--mode=prepare` keeps what the networks make of them.

  Bytes are those of ImageNet at 256 px, as a share of the published features'
  1.645 MB an image, with latents="sample"; "posterior" adds .02.

  Attributes:
    source: "folder": image files in any nesting; "tfds": a TFDS data set;
      "digits": scikit-learn's handwritten digits; "upstream": the published
      code's .safetensors features, which need no preparation; "none": no
      images, the config can only sample.
    path: The folder of "folder" and "upstream"; TFDS's data_dir, where "" is
      its default. Unused by the others.
    tfds: Name of the data set, e.g. "imagenet2012". "tfds" only.
    split: Its split. "tfds" only.
    prepared: Directory that `--mode=prepare` writes and training reads. "" with
      "digits": encoded in memory when training starts.
    holdout: Images kept out of training and of the bank. Digits in memory only.
    mirror: Whether the mirror images are prepared and trained on, too.
    latents: "posterior": mean and log-variance, so that every epoch draws other
      latents; "sample": one draw each, as published.
    tokens: The projection's targets. "bf16": as they are (.50); "int8": with a
      scale for each token (.26), which turns Gaussian tokens by 1 - cos < 2e-4;
      "pixels": not kept, the training step runs the feature encoder on uint8
      pixels (.14), which costs about 6 % more arithmetic for an XL; "none": no
      projection loss.
    shard_size: Images in a shard, which is what is written anew after a kill.
    device_batch: Images that the frozen networks see at a time on each device.
    independent_flips: Whether latent, tokens and feature of an example are
      mirrored by a flip flag each, as in the published code, or share one.
  """

  source: Literal["folder", "tfds", "digits", "upstream", "none"]
  path: str
  tfds: str
  split: str
  prepared: str
  holdout: int
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
    if self.holdout and (self.source != "digits" or self.prepared):
      raise ValueError(
        f"config.data.holdout={self.holdout}: must be 0 unless"
        " config.data.source='digits' with config.data.prepared=''"
      )
    if self.independent_flips and not self.mirror:
      raise ValueError(
        "config.data.independent_flips=True needs config.data.mirror=True"
      )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """What `--mode=sample` makes.

  Attributes:
    seed: Image i depends on (seed, i) alone.
    count: Number of images; with `rows`, --image or --interpolate it follows
      from them and `per_row`.
    batch_size: Images that are made and written at a time, over all devices.
    device_batch: Images in one call of the compiled sampler on each device; it
      is filled up. The last bits of an image may depend on it, as compilers
      choose kernels by shape, and on no other number here.
    weights: Which parameters of the run: "ema" or "params".
    network: Converted weights of a network; "" for the run's newest checkpoint.
    bank: A converted bank; "" for the run's, or the one that comes with
      `network`.
    draw: How a bank row is drawn for an image: "uniform", or "noise": from the
      image's own noise, by the frequencies in the bank (first release).
    rows: Bank rows to sample from, in order; () to draw them.
    per_row: Samples of each row, or of each image or point of a manipulation.
    format: "png": a folder of images; "npz": one file in the layout of the ADM
      evaluation (arr_0, uint8 [n H W 3]); or "both".
    grid: Images in the contact sheet grid.png; 0 for none.
    output: Directory of the images; "" for one in the run's directory.
    interpolation: Method of --interpolate.
    points: Snippets of --interpolate, both ends included ("concat" has one).
    reading: How --image and --interpolate read image files: "bank" as the bank
      was made; "published" as the published manipulation does, which shows the
      encoder a washed-out image.
    decode_dtype: Of the tokenizer's products when it decodes, in the sampler's
      compiled call; encoding is always float32.
  """

  seed: int
  count: int
  batch_size: int
  device_batch: int
  weights: Literal["ema", "params"]
  network: str
  bank: str
  draw: Literal["uniform", "noise"]
  rows: tuple[int, ...]
  per_row: int
  format: Literal["png", "npz", "both"]
  grid: int
  output: str
  interpolation: Interpolation
  points: int
  reading: Literal["bank", "published"]
  decode_dtype: Literal["float32", "bfloat16"]

  def __post_init__(self):
    checks.positive("sample", self, "count", "batch_size", "device_batch")
    checks.positive("sample", self, "per_row", "points")
    checks.not_negative("sample", self, "grid")
    if any(row < 0 for row in self.rows):
      raise ValueError(
        f"config.sample.rows={self.rows}: bank rows are numbered from 0"
      )
    if self.draw == "noise" and (self.rows or self.per_row > 1):
      raise ValueError(
        "config.sample.draw='noise' lets every image choose its row, so"
        f" config.sample.rows={self.rows} must be () and"
        f" config.sample.per_row={self.per_row} must be 1"
      )
    if self.interpolation in ("linear", "spherical") and self.points < 2:
      raise ValueError(
        f"config.sample.points={self.points}: must be at least 2 with"
        f" config.sample.interpolation={self.interpolation!r}"
      )


# What images are scored by; `gmem_jax.evaluate.scores` says how.
Score = Literal[
  "fid",
  "sfid",
  "inception_score",
  "precision_recall",
  "frechet_dinov2",
  "frechet",
]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation, during training and by `--mode=evaluate`.

  Attributes:
    every: Steps between evaluations; 0: only at the end.
    count: Images sampled for one evaluation during training;
      `--mode=evaluate` scores the images that `--mode=sample` would make.
    grid: Images in the sample picture.
    scores: What is measured; () for nothing during training. "fid", "sfid",
      "inception_score" and "precision_recall" as the ADM suite defines them;
      "frechet_dinov2": the Fréchet distance in the features of
      `encoder.features_weights`; "frechet": in those of a small classifier of
      the run's own images, for digits.
    reference: What images are compared with: ADM's .npz, statistics that
      `python -m gmem_jax.evaluate stats` made, a folder or an .npz of images,
      prepared data that hold images; "" for the run's own training images,
      where they are in memory.
    inception_weights: Converted weights of FID's network.
    preprocessing: How images are resized for it: "adm" as the ADM suite,
      "pytorch_fid" as pytorch-fid, "published" as pytorch-fid while the
      reference is ADM's, as in the published evaluation of GMem.
    device_batch: Images on each device in one call of these networks.
    images: A folder or an .npz to score instead of samples; "" for samples.
    keep_images: Keep the samples as `--mode=sample` would write them.
    save_every: Seconds between notes of what is done, from which a killed
      evaluation continues.
    audit: Images whose nearest training images `--mode=evaluate` looks up; 0
      for none.
  """

  every: int
  count: int
  grid: int
  scores: tuple[Score, ...]
  reference: str
  inception_weights: str
  preprocessing: Literal["adm", "pytorch_fid", "published"]
  device_batch: int
  images: str
  keep_images: bool
  save_every: float
  audit: int

  def __post_init__(self):
    checks.positive("eval", self, "count", "grid", "device_batch")
    checks.not_negative("eval", self, "audit", "save_every")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What is made when the run ends.

  Attributes:
    unconditional: Also train the same network without memory for as many
      steps, and compare.
  """

  unconditional: bool


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run; each section says what its keys mean.

  Attributes:
    seed: Seed of parameters, data order, noise and encoders.
    compile_cache: Directory of compiled programs, which a second start need not
      compile again; a relative one lies in the run's directory. "" for none.
      The environment's JAX_COMPILATION_CACHE_DIR wins.
  """

  seed: int
  compile_cache: str
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
  report: ReportConfig
