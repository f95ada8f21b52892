r"""Emoji, or your own folder of images: no download, on a laptop.

  python -m gmem_jax.data.emoji data/emoji
  python -m gmem_jax.main --config=configs/emoji.py --mode=prepare
  python -m gmem_jax.main --config=configs/emoji.py --workdir=runs/emoji
  python -m gmem_jax.main --config=configs/emoji.py --workdir=runs/emoji \
    --mode=sample --bank=data/emoji_prepared/heldout

The pictures and the feature encoder come with Python packages. Training takes
50 minutes on two CPU cores; after 2,000 of its steps, shapes and colours are
right. 150 pictures, and the kinds of `data.holdout_groups` as a whole, are held
out: the last command samples from memories that the network never saw.

Options: `configs/emoji.py:folder --config.data.path=FOLDER` takes your own
images instead, `configs/emoji.py:cross` attends to the neighbours of the
snippet in the bank, `configs/emoji.py:adaln+cross` does both.
`configs/emoji.py:pretrained` samples from the weights that come with gmem_jax.
"""

import os
import pathlib

import ml_collections

OPTIONS = ("", "folder", "cross", "adaln+cross", "pretrained")


def get_config(option: str = "") -> ml_collections.ConfigDict:
  """The recipe; every key is here.

  Args:
    option: What follows the colon on the command line, one of `OPTIONS`.
  """
  if option not in OPTIONS:
    raise ValueError(f"option {option!r}: allowed are {OPTIONS[1:]}")
  own, pretrained = option == "folder", option == "pretrained"
  place = "data/folder" if own else "data/emoji"
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.compile_cache = "compiled"  # in WORKDIR; "": none

  c.data = dict(
    source="folder",
    path=place,
    tfds="",
    split="",
    prepared=f"{place}_prepared",  # what --mode=prepare writes
    truncated="skip",  # JPEG that ends too soon; or "fill"
    holdout=0 if own else 150,  # pictures kept out of training and of the bank
    holdout_groups=() if own else ("animal-bird", "animal-marine"),
    mirror=True,
    latents="sample",  # a linear tokenizer has no posterior
    tokens="none",  # no projection loss
    shard_size=500,  # images
    device_batch=32,  # images in the frozen networks at a time
    independent_flips=False,
  )
  c.encoder = dict(
    tokenizer="patch_pca",
    tokenizer_weights=f"{place}_fitted/tokenizer",  # prepare writes it
    tokenizer_patch=8,  # pixels
    tokenizer_channels=48,
    latent_stats="",  # the run's own
    features="efficientnet_lite0",
    features_weights="weights/efficientnet_lite0",  # prepare writes them
    snippet_weights=f"{place}_fitted/snippet",  # prepare writes it
    snippet_width=384,
    image_size=64,  # pixels
  )
  c.bank = dict(
    storage="float32",  # or "bfloat16", "int8" with a scale for each row
    placement="auto",  # "replicated", "sharded" rows, or as memory permits
  )
  c.model = dict(
    family="lightning_dit",
    width=128,
    depth=6,
    heads=4,
    patch=1,  # latent pixels
    conditioning=option if "cross" in option else "adaln",
    cross_every=1,  # every n-th block attends to the neighbours
    snippet_dropout=0.1,
    projector_depth=4,
    projector_width=256,
    swiglu=True,
    rope=True,
    rms_norm=True,
    qk_norm=True,
    shift=True,
    learn_sigma=False,
    dtype="float32",
    residual_dtype="float32",  # between blocks; or "bfloat16": less memory
    float8=False,  # True: 8-bit matmuls; NVIDIA GPUs from Hopper on
    scan_layers=False,
    remat="none",
    attention="xla",
  )
  c.retrieval = dict(  # of the cross-attention
    neighbours=8,
    exclude_own=True,  # attend to others only
    dropout=0.1,  # of whole neighbours
  )
  c.loss = dict(
    path="linear",
    prediction="data",  # of many channels easier than the velocity
    weighting="velocity",
    time="lognormal",
    cosine=False,
    projection_weight=0.0,  # 0: no REPA targets are needed
    train_eps=None,
  )
  c.optim = dict(
    learning_rate=1.5e-3,
    schedule="cosine",
    warmup_steps=50,
    decay_steps=0,  # of "cosine", which ends there; 0: at train.steps
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
  )
  c.train = dict(
    steps=12000,
    batch_size=32,  # over all devices
    accumulation=1,  # parts of the batch, one after the other
    steps_per_dispatch=10,
    ema_decay=0.995,
    log_every=50,
    init_from="",  # converted weights, or the directory of a run
    allow_changes=False,  # True: go on with another rate or batch size
  )
  c.mesh = dict(
    data=-1,  # all remaining devices
    fsdp=1,
    tensor=1,
    gather="layer",  # what fsdp splits; or "step": all at once
  )
  c.checkpoint = dict(
    every=1000,  # steps
    keep_latest=2,
    keep_every=0,  # steps; 0: keep none permanently
  )
  c.sampler = dict(
    path="linear",
    prediction="data",
    method="sde_heun",
    steps=33,  # points of the time grid
    diffusion_form="linear",  # this and the next three: SDE only
    diffusion_norm=1.0,
    last_step="tweedie",  # the data that the network predicts there
    last_step_size=0.05,
    timestep_shift=0.0,
    sample_eps=None,
    step_control="image",  # this and the next two: ode_dopri5 only
    atol=1e-6,
    rtol=1e-3,
    guidance=dict(scale=1.0, start=0.0, end=1.0, after_end="conditional"),
  )
  c.sample = dict(
    seed=0,  # image i depends on (seed, i) alone
    count=64,
    batch_size=64,  # images at a time, over all devices
    device_batch=32,  # images in one compiled call on each device
    weights="ema",  # or "params"
    network="",  # converted weights instead of the run's
    bank="",  # the run's
    draw="uniform",  # or "noise"; "prior": of --mode=prior, without a bank
    rows=(),  # bank rows to sample from; (): drawn
    per_row=1,  # samples of each row, or of each --image
    format="png",  # or "npz" (ADM), "both"
    grid=64,  # images in the contact sheet; 0: none
    output="",  # WORKDIR/images/...
    interpolation="spherical",  # or "linear", "concat", "mask"
    points=6,  # of --interpolate
    reading="bank",  # how --image reads files; or "published"
    dtype="float32",  # of the network, as published; or "bfloat16": faster
    precision="high",  # of float32 on accelerators; or "default", "highest"
    decode_dtype="float32",  # or "bfloat16": faster, other last bits
    group="",  # of the memories that a prior draws; "": any
  )
  c.eval = dict(
    every=2000,  # steps; 0: only at the end
    count=64,  # images
    grid=64,  # images in the sample picture
    scores=(),
    thresholds=(),  # ("fid<=5",): when was it reached?
    reference="",
    heldout="",  # images never trained on
    inception_weights="",
    preprocessing="adm",
    device_batch=32,  # images in one call on each device
    images="",  # a folder or .npz to score instead of samples
    keep_images=False,
    save_every=60.0,  # seconds
    repeats=10,  # random halves and splits: standard errors, floors; 0: none
    audit=0,  # images whose nearest training images are looked up
  )
  c.log = dict(
    wandb="",  # project on Weights & Biases
    profile="",  # steps to trace, FIRST:LAST
  )
  c.report = dict(
    unconditional=False,  # also train without memory, and compare
  )
  # Of --mode=prior.
  c.prior = dict(
    width=256,
    depth=4,
    steps=2000,
    batch_size=128,  # rows, over all devices
    learning_rate=1e-3,
    ema_decay=0.995,
    group_dropout=0.1,  # rows without their group
    points=33,  # of the time grid, when it samples
    guidance=1.0,  # by the group; 1: none
  )
  if pretrained:
    _use_pretrained(c)
  return c


def _use_pretrained(c: ml_collections.ConfigDict) -> None:
  """Samples from the weights in the package; there is nothing to train."""
  import gmem_jax

  folder = (
    pathlib.Path(gmem_jax.__file__).parent / "sample" / "pretrained" / "emoji"
  )
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  c.update_from_flattened_dict(
    {
      "data.source": "none",
      "data.prepared": "",
      "data.holdout": 0,
      "data.holdout_groups": (),
      "encoder.tokenizer_weights": str(folder / "tokenizer.safetensors"),
      "encoder.latent_stats": str(folder / "latent_stats.safetensors"),
      "encoder.snippet_weights": str(folder / "snippet.safetensors"),
      "encoder.features_weights": str(
        pathlib.Path(cache, "gmem_jax", "efficientnet_lite0")
      ),
      "sample.network": str(folder / "network.safetensors"),
      "sample.bank": str(folder / "bank"),
    }
  )
