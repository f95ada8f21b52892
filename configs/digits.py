"""Handwritten digits, end to end, in minutes on two CPU cores.

  python -m gmem_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m gmem_jax.main --config=configs/digits.py:cross --workdir=runs/cross

Data: the 1,797 digits that scikit-learn ships, 360 of them held out. Needs no
download and no accelerator. Trains a memory-conditioned SiT of 0.9 M
parameters, then the same network without memory, and compares them.

Options: `configs/digits.py:cross` attends to the neighbours of the snippet in
the bank instead, `configs/digits.py:adaln+cross` does both;
`python -m gmem_jax.bench conditioning` compares them all.
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
    source="digits",
    path="",  # unused
    tfds="",  # unused
    split="",  # unused
    prepared="",  # encoded in memory when training starts
    truncated="skip",
    holdout=360,  # images kept out of training and of the bank
    holdout_groups=(),  # classes kept out whole, as ("7", "8")
    mirror=False,  # a mirrored digit is not a digit
    latents="sample",  # the identity tokenizer has no posterior
    tokens="none",  # no projection loss
    shard_size=500,  # images
    device_batch=256,  # images in the frozen networks at a time
    independent_flips=False,
  )
  c.encoder = dict(
    tokenizer="identity",  # the flow works on the 8 x 8 pixels
    tokenizer_weights="",
    tokenizer_patch=8,  # pixels; this and the next: "patch_pca" only
    tokenizer_channels=32,
    latent_stats="",  # the run's own
    features="random_conv",  # 768-d unit snippets, as wide as DINOv2's
    features_weights="",
    snippet_weights="",  # "": the feature itself; or what prepare fits
    snippet_width=768,  # of what it fits
    image_size=8,  # pixels
  )
  c.bank = dict(
    storage="float32",  # or "bfloat16", "int8" with a scale for each row
    placement="auto",  # "replicated", "sharded" rows, or as memory permits
  )
  c.model = dict(
    family="sit",
    width=96,
    depth=4,
    heads=4,
    patch=2,  # latent pixels
    conditioning=option or "adaln",  # or "cross", "adaln+cross", "none"
    cross_every=1,  # every n-th block attends to the neighbours
    snippet_dropout=0.0,
    projector_depth=4,
    projector_width=256,
    swiglu=False,  # this and the next four: lightning_dit only
    rope=False,
    rms_norm=False,
    qk_norm=False,
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
    prediction="velocity",
    weighting="none",
    time="lognormal",
    cosine=False,
    projection_weight=0.0,  # 0: no REPA targets are needed
    train_eps=None,
  )
  c.optim = dict(
    learning_rate=2e-3,
    schedule="cosine",
    warmup_steps=20,
    decay_steps=0,  # of "cosine", which ends there; 0: at train.steps
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
  )
  c.train = dict(
    steps=500,
    batch_size=128,  # over all devices
    accumulation=1,  # parts of the batch, one after the other
    steps_per_dispatch=10,
    ema_decay=0.97,
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
    every=200,  # steps
    keep_latest=2,
    keep_every=0,  # steps; 0: keep none permanently
  )
  c.sampler = dict(
    path="linear",
    prediction="velocity",
    method="ode_heun2",
    steps=17,  # points of the time grid: 16 steps, 32 network calls
    diffusion_form="linear",  # this and the next three: SDE only
    diffusion_norm=1.0,
    last_step="mean",
    last_step_size=0.04,
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
    device_batch=64,  # images in one compiled call on each device
    weights="ema",  # or "params"
    network="",  # converted weights instead of the run's
    bank="",  # the run's
    draw="uniform",  # or "noise"; "prior": of --mode=prior, without a bank
    rows=(),  # bank rows to sample from; (): drawn
    per_row=1,  # samples of each row
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
    every=50,  # steps; 0: only at the end
    count=512,  # images
    grid=64,  # images in the sample picture
    scores=("frechet",),  # in the features of a small classifier
    thresholds=(),  # ("frechet<=0.5",): when was it reached?
    reference="",  # the training images
    heldout="",  # the run's own
    inception_weights="",  # this and the next: of other scores
    preprocessing="adm",
    device_batch=64,  # images in one call on each device
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
    unconditional=True,  # also train without memory, and compare
  )
  # Of --mode=prior.
  c.prior = dict(
    width=256,
    depth=4,
    steps=1000,
    batch_size=128,  # rows, over all devices
    learning_rate=1e-3,
    ema_decay=0.995,
    group_dropout=0.1,  # rows without their group
    points=33,  # of the time grid, when it samples
    guidance=1.0,  # by the group; 1: none
  )
  return c
