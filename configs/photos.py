r"""From a folder of photographs to samples, in minutes on a laptop.

  python -m gmem_jax.data.photos data/photos weights/random
  python -m gmem_jax.main --config=configs/photos.py --mode=prepare
  python -m gmem_jax.main --config=configs/photos.py --workdir=runs/photos
  python -m gmem_jax.main --config=configs/photos.py --workdir=runs/photos \
    --mode=sample
  python -m gmem_jax.main --config=configs/photos.py --workdir=runs/photos \
    --mode=sample --image=data/photos/flower/0.jpg

Every step of configs/xl_in1k.py, at a size for two CPU cores. The frozen
networks have the published layout and RANDOM weights, so the samples are no
pictures: this shows the way, it does not measure the method. For real ones
convert VA-VAE and DINOv2 and name them in `encoder`.

Options: `configs/photos.py:cross` attends to the neighbours of the snippet in
the bank instead, `configs/photos.py:adaln+cross` does both.
"""

import ml_collections

OPTIONS = ("", "cross", "adaln+cross")


def get_config(option: str = "") -> ml_collections.ConfigDict:
  """The recipe; every key is here.

  Args:
    option: What follows the colon on the command line, one of `OPTIONS`.
  """
  if option not in OPTIONS:
    raise ValueError(f"option {option!r}: allowed are {OPTIONS[1:]}")
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.compile_cache = "compiled"  # in WORKDIR; "": none

  c.data = dict(
    source="folder",  # or "tfds", "upstream"; "none": only sample
    path="data/photos",
    tfds="",  # "tfds" only, like the next one
    split="",
    prepared="data/photos_prepared",  # what --mode=prepare writes
    truncated="skip",  # JPEG that ends too soon; or "fill"
    holdout=0,
    holdout_groups=(),
    mirror=True,
    latents="posterior",  # or "sample", as published
    tokens="bf16",  # or "int8", "pixels", "none"
    shard_size=8,  # images
    device_batch=4,  # images in the frozen networks at a time
    independent_flips=False,  # True: as published, mirrors do not match
  )
  c.encoder = dict(
    tokenizer="va_vae",
    tokenizer_weights="weights/random/vae",
    tokenizer_patch=8,  # pixels; this and the next: "patch_pca" only
    tokenizer_channels=32,
    latent_stats="",  # of sample.network only; a run keeps those of its data
    features="dinov2",
    features_weights="weights/random/dinov2",
    snippet_weights="",  # "": the feature itself; or what prepare fits
    snippet_width=768,  # of what it fits
    image_size=256,  # pixels
  )
  c.bank = dict(
    storage="float32",  # or "bfloat16", "int8" with a scale for each row
    placement="auto",  # "replicated", "sharded" rows, or as memory permits
  )
  c.model = dict(
    family="lightning_dit",
    width=64,
    depth=2,
    heads=2,
    patch=1,  # latent pixels
    conditioning=option or "adaln",  # or "cross", "adaln+cross", "none"
    cross_every=1,  # every n-th block attends to the neighbours
    snippet_dropout=0.4,
    projector_depth=2,
    projector_width=128,
    swiglu=True,
    rope=True,
    rms_norm=True,
    qk_norm=False,
    shift=True,
    learn_sigma=False,
    dtype="float32",
    residual_dtype="float32",  # between blocks; or "bfloat16": less memory
    float8=False,  # True: 8-bit matmuls; NVIDIA GPUs from Hopper on
    scan_layers=False,
    remat="none",
    attention="auto",
  )
  c.retrieval = dict(  # of the cross-attention
    neighbours=4,
    exclude_own=True,  # attend to others only
    dropout=0.1,  # of whole neighbours
  )
  c.loss = dict(
    path="linear",
    prediction="velocity",
    weighting="none",
    time="lognormal",
    cosine=True,
    projection_weight=0.5,
    train_eps=None,
  )
  c.optim = dict(
    learning_rate=2e-4,
    schedule="constant",
    warmup_steps=0,
    decay_steps=0,  # of "cosine", which ends there; 0: at train.steps
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
  )
  c.train = dict(
    steps=40,
    batch_size=8,  # over all devices
    steps_per_dispatch=1,
    ema_decay=0.9,
    accumulation=1,  # parts of the batch, one after the other
    log_every=10,
    init_from="",  # converted weights, or the directory of a run
    allow_changes=False,  # True: go on with another rate or batch size
  )
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: all remaining devices
  c.checkpoint = dict(
    every=20,  # steps
    keep_latest=2,
    keep_every=0,  # steps; 0: keep none permanently
  )
  c.sampler = dict(
    path="linear",
    prediction="velocity",
    method="sde_heun",
    steps=9,  # points of the time grid
    diffusion_form="linear",  # this and the next three: SDE only
    diffusion_norm=1.0,
    last_step="mean",
    last_step_size=0.004,
    timestep_shift=0.0,
    sample_eps=None,
    step_control="image",  # this and the next two: ode_dopri5 only
    atol=1e-6,
    rtol=1e-3,
    guidance=dict(scale=1.0, start=0.89, end=1.0, after_end="unconditional"),
  )
  c.sample = dict(
    seed=0,  # image i depends on (seed, i) alone
    count=8,
    batch_size=8,  # images at a time, over all devices
    device_batch=8,  # images in one compiled call on each device
    weights="ema",  # or "params"
    network="",  # converted weights instead of the run's
    bank="",  # the run's
    draw="uniform",  # or "noise"
    rows=(),  # bank rows to sample from; (): drawn
    per_row=4,  # samples of each row, or of each --image
    format="png",  # or "npz" (ADM), "both"
    grid=8,  # images in the contact sheet; 0: none
    output="",  # WORKDIR/images/...
    interpolation="spherical",  # or "linear", "concat", "mask"
    points=6,  # of --interpolate
    reading="bank",  # how --image reads files; or "published"
    dtype="float32",  # of the network, as published; or "bfloat16": faster
    precision="high",  # of float32 on accelerators; or "default", "highest"
    decode_dtype="float32",  # or "bfloat16": faster, other last bits
  )
  c.eval = dict(
    every=0,  # steps; 0: only at the end
    count=8,  # images
    grid=8,  # images in the sample picture
    scores=(),  # the samples are no pictures
    reference="",
    inception_weights="",
    preprocessing="adm",  # or "pytorch_fid", "published"
    device_batch=8,  # images in one call on each device
    images="",  # a folder or .npz to score instead of samples
    keep_images=False,
    save_every=60.0,  # seconds
    audit=0,  # images whose nearest training images are looked up
  )
  c.log = dict(
    wandb="",  # project on Weights & Biases
    profile="",  # steps to trace, FIRST:LAST
  )
  c.report = dict(
    unconditional=False,  # also train without memory, and compare
  )
  return c
