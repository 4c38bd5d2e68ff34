"""The pipeline of the demo: Chinese, conversations and preferences in order, then an export."""

from configs.demo_base import FOLDER
from configs.demo_cpt import config as cpt
from configs.demo_dpo import config as dpo
from configs.demo_sft import config as sft
from llama_cpt.config.pipeline import PipelineConfig

config = PipelineConfig(
    output=f"{FOLDER}/road",
    stages=(cpt, sft, dpo),
    prompts=(
        "What is a kettle usually made of?",
        "What does a cat eat?",
        "水壶通常是用什么做的？",
        "猫吃什么？",
    ),
    questions=f"{FOLDER}/world/examination.jsonl",
    tasks=tuple(
        f"world_{subject}_{language}"
        for language in ("zh", "en")
        for subject in ("facts", "arithmetic", "feelings")
    ),
    benchmarks=f"{FOLDER}/world",
    task_examples=128,
    max_new_tokens=32,
    export_dtype="float32",
)
