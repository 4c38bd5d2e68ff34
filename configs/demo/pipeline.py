"""The pipeline of the demo: CPT on Chinese, SFT, DPO, an export and a report."""

from configs.demo.base import FOLDER
from configs.demo.cpt import config as cpt
from configs.demo.dpo import config as dpo
from configs.demo.sft import config as sft
from llama_cpt.config.pipeline import PipelineConfig

config = PipelineConfig(
    output=f"{FOLDER}/pipeline",
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
