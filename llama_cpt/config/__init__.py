"""Run, sweep and pipeline configurations: the classes that a Python config file imports."""

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
    ModelConfig,
    NextTokenConfig,
    OptimizerConfig,
    PreferenceConfig,
    RopeScaling,
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
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "NextTokenConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "PreferenceConfig",
    "RopeScaling",
    "SizeConfig",
    "SweepConfig",
    "TrainConfig",
]
