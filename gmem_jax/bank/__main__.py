"""python -m gmem_jax.bank: see `gmem_jax.commands.bank`."""

import sys

from gmem_jax.commands import bank as bank_command, interrupt, startup

if __name__ == "__main__":
  startup.skip_libtpu()
  sys.exit(interrupt.run(bank_command.main))
