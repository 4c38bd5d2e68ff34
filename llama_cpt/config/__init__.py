"""Config classes for runs, sweeps and pipelines, for import in Python config files."""

from llama_cpt.config.model import ModelConfig, RopeScaling
from llama_cpt.config.monitors import ForgettingConfig, SpikeConfig
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import (
    ChatConfig,
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    NextTokenConfig,
    OptimizerConfig,
    PreferenceConfig,
    TrainConfig,
)
from llama_cpt.config.sweep import AxisConfig, SizeConfig, SweepConfig

__all__ = [
    "AxisConfig",
    "ChatConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "CorpusConfig",
    "DataConfig",
    "EvaluationConfig",
    "ForgettingConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "NextTokenConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "PreferenceConfig",
    "RopeScaling",
    "SizeConfig",
    "SpikeConfig",
    "SweepConfig",
    "TrainConfig",
]
