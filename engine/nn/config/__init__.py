"""A model's hyperparameters, read from a file's metadata. Does not import MLX.

`model` defines them; `read` reads and checks the keys, with the help of `parts`; `tensors` knows
which tensors of the file the model uses.
"""

from engine.nn.config.model import (
    BlocksConfig,
    EntriesConfig,
    ExpertConfig,
    IndexerConfig,
    LatentConfig,
    ModelConfig,
    NgramConfig,
    RecurrentConfig,
    RopeConfig,
    StreamsConfig,
)
from engine.nn.config.read import architecture_of, read_config, read_model_config
from engine.nn.config.tensors import OF_EXPERTS, count_parameters, token_share, used_tensors

__all__ = [
    "OF_EXPERTS",
    "BlocksConfig",
    "EntriesConfig",
    "ExpertConfig",
    "IndexerConfig",
    "LatentConfig",
    "ModelConfig",
    "NgramConfig",
    "RecurrentConfig",
    "RopeConfig",
    "StreamsConfig",
    "architecture_of",
    "count_parameters",
    "read_config",
    "read_model_config",
    "token_share",
    "used_tensors",
]
