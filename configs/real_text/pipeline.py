"""The real-text pipeline: continual pre-training, SFT, DPO, export and one report."""

from configs.real_text.cpt import config as cpt
from configs.real_text.dpo import config as dpo
from configs.real_text.sft import config as sft
from llama_cpt.config.pipeline import PipelineConfig

config = PipelineConfig(
    output="runs/real_text/pipeline",
    stages=(cpt, sft, dpo),
    prompts=(
        "Give three tips for staying healthy.",
        "What is the capital of France?",
        "保持健康的三个提示。",
        "最近压力很大，晚上总是睡不着，怎么办？",
    ),
    max_new_tokens=64,
)
