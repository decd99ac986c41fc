"""Settings of a node or a local run, from conveyord.toml.

Every key is in the sample conveyord.toml at the top of the repository, with its unit and default.
Unknown keys and wrong types are refused with their line. Nothing is read from environment variables
but what a value asks for with `env:NAME`.
"""

from conveyord.config.loading import load_config, load_node_config
from conveyord.config.model import Config
from conveyord.config.running import DEAD_LETTERS_BUDGET_BYTES, SPILL_BUDGET_BYTES, RunConfig
from conveyord.config.values import Address

__all__ = [
    "DEAD_LETTERS_BUDGET_BYTES",
    "SPILL_BUDGET_BYTES",
    "Address",
    "Config",
    "RunConfig",
    "load_config",
    "load_node_config",
]
