"""What a pipeline is: runs one after the other, each from the last."""

from dataclasses import dataclass, replace
from typing import Literal

from llama_cpt.config.fields import ConfigSection, option, require_at_least, require_nonempty
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class PipelineConfig(ConfigSection):
    """Continual pre-training, then SFT, then DPO, or any other stages; an export and a report."""

    output: str = option(is_path=True)
    """Folder of the report and of ``exported``, the last stage in Hugging Face's format."""
    stages: tuple[TrainConfig, ...]
    """A stage without ``init_from`` starts from the one before; a stage's name in the report is its
    output folder's."""
    prompts: tuple[str, ...] = ()
    """Asked before the first stage and after each; the answers stand in the report."""
    questions: str = option("", former_name="examination", is_path=True)
    """JSON Lines of questions with right answers (``evaluation/examination.py``)."""
    tasks: tuple[str, ...] = ()
    """Benchmarks put to each of these models, as ``evaluate --tasks``; ``bpb`` is bits per byte of
    the first stage's held-out corpora."""
    benchmarks: str = option("", is_path=True)
    """Folder of benchmarks on disk, as ``evaluate --data``; empty: the hub."""
    task_examples: int = 0
    """Of each part of a task, at most; 0 is all."""
    max_new_tokens: int = 64
    """Longest answer."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse stages that do not follow one another."""
        super().__post_init__()
        require_nonempty("", output=self.output)
        require_at_least(1, self, "", "max_new_tokens")
        require_at_least(0, self, "", "task_examples")
        if not self.stages:
            raise UserError("stages is empty: name at least one run.")
        self.linked_stages()
        names = self.stage_names()
        if len(set(names)) < len(names) or "before" in names:
            raise UserError(
                f"stages: {', '.join(names)}: give each its own output folder, none named before."
            )

    def linked_stages(self) -> tuple[TrainConfig, ...]:
        """The stages, each started from the one before."""
        linked = [self.stages[0]]
        for stage in self.stages[1:]:
            before = linked[-1].output
            if stage.init_from not in ("", before):
                raise UserError(
                    f"stages: {stage.output} starts from {stage.init_from}, the stage before it is "
                    f"{before}: leave init_from empty, or set it to that."
                )
            linked.append(replace(stage, init_from=before))
        return tuple(linked)

    def stage_names(self) -> list[str]:
        """Of the stages."""
        return [stage.output.rstrip("/").rsplit("/", 1)[-1] for stage in self.stages]
