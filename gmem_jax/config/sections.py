"""The config's sections that belong to no one module."""

import dataclasses
from typing import Literal

from gmem_jax.bank import interpolate
from gmem_jax.data import schema


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
      mirrored by three coins, as in the published code, not by one.
  """

  source: Literal["folder", "tfds", "digits", "upstream", "none"]
  path: str
  tfds: str
  split: str
  prepared: str
  holdout: int
  mirror: bool
  latents: schema.Latents
  tokens: schema.Tokens
  shard_size: int
  device_batch: int
  independent_flips: bool


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The frozen networks. Weights are what `python -m gmem_jax.convert` wrote.

  Attributes:
    tokenizer: "identity": latents are pixels; or a published autoencoder.
    tokenizer_weights: Its weights; unused by "identity".
    latent_stats: Statistics that the latents of `sample.network` are normalised
      with; "" for the tokenizer's own scale, if it has one. A run keeps those
      of its data.
    features: "random_conv": fixed random convolutions, 768 wide; "dinov2".
    features_weights: Its weights; unused by "random_conv".
    image_size: Side of the images that features are made of, in pixels.
  """

  tokenizer: Literal["identity", "va_vae", "mar_vae", "sd_vae"]
  tokenizer_weights: str
  latent_stats: str
  features: Literal["random_conv", "dinov2"]
  features_weights: str
  image_size: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    steps: Steps of the whole run.
    batch_size: Global batch size.
    accumulation: Parts of the batch that follow one another inside a step,
      which then needs as much less memory for activations; the step is the
      same.
    steps_per_dispatch: Steps per call of the compiled function; a few help
      where a step takes milliseconds.
    ema_decay: Decay of the parameters' moving average per step.
    log_every: Steps between log lines.
    init_from: Where a new run's parameters come from: converted weights, or the
      directory of a run (its moving average), also of another conditioning; ""
      to draw them.
  """

  steps: int
  batch_size: int
  accumulation: int
  steps_per_dispatch: int
  ema_decay: float
  log_every: int
  init_from: str


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
  interpolation: interpolate.Method
  points: int
  reading: Literal["bank", "published"]
  decode_dtype: Literal["float32", "bfloat16"]


# What images are scored by; `gmem_jax.evaluate.catalogue` says how.
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


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What is made when the run ends.

  Attributes:
    unconditional: Also train the same network without memory for as many
      steps, and compare.
  """

  unconditional: bool
