"""The architecture of a config that leaves ``model`` out: that of its initial weights."""

from dataclasses import replace
import logging
from typing import TypeVar

from llama_cpt.checkpoint.run_folder import is_run_folder
from llama_cpt.config.fields import from_dict, to_dict
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.distributed import is_primary, run_on_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.source import open_source

logger = logging.getLogger(__name__)

Config = TypeVar("Config", TrainConfig, PipelineConfig, SweepConfig)


def with_model(config: Config) -> Config:
    """Return ``config`` with ``model`` set wherever it was left out.

    A run and each size of a sweep have the architecture of their ``init_from``. A later stage of a
    pipeline has the architecture of the stage before it. Each architecture that is read is logged.
    Every process of a run must make this call. Raises UserError if ``model`` and ``init_from`` are
    both left out, or if ``init_from`` cannot be read or does not fit the other fields.
    """
    if isinstance(config, TrainConfig):
        return replace(config, model=config.model or _architecture(config.init_from, "config"))
    if isinstance(config, PipelineConfig):
        stages: list[TrainConfig] = []
        for stage in config.stages:
            model = stage.model or (stages[-1].model if stages else None)
            model = model or _architecture(stage.init_from, f"stages: {stage.output}")
            stages.append(replace(stage, model=model))
        return replace(config, stages=tuple(stages))
    sizes = tuple(
        replace(size, model=size.model or _architecture(size.init_from, f"sizes: {size.name}"))
        for size in config.sizes
    )
    train = config.train
    # The sizes replace the model and the weights of train.
    if train.model is None:
        model = sizes[0].model if sizes else _architecture(train.init_from, "train")
        train = replace(train, model=model)
    return replace(config, train=train, sizes=sizes)


def _architecture(path: str, where: str) -> ModelConfig:
    """Return the architecture of the weights at ``path``.

    Raises UserError, which begins with ``where``, if ``path`` is empty.
    """
    if not path:
        raise UserError(
            f"{where}: model is not set; set it, or set init_from to a folder with trained weights."
        )
    if is_run_folder(path):
        # All processes verify the checkpoint of a run together.
        found = open_source(path).architecture
    else:
        values = run_on_primary(lambda: to_dict(open_source(path).architecture), "architecture")
        found = from_dict(ModelConfig, values, path)
    if is_primary():
        logger.info("model of %s: %s", path, found)
    return found
