"""The config of a pipeline: stages that each start from the stage before."""

from dataclasses import dataclass, replace
from typing import Literal

from llama_cpt.config.fields import ConfigSection, option, require_at_least, require_nonempty
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class PipelineConfig(ConfigSection):
    """Continual pre-training, SFT and DPO, or any other stages; then an export and a report."""

    output: str = option(is_path=True)
    """Folder of the report and of ``exported``, the last stage in Hugging Face format."""
    stages: tuple[TrainConfig, ...]
    """Runs in order; one without ``init_from`` starts from the one before. The name of a stage in
    the report is that of its output folder."""
    prompts: tuple[str, ...] = ()
    """Prompts answered before the first stage and after each stage, for the report."""
    questions: str = option("", former_name="examination", is_path=True)
    """JSON Lines of questions with correct answers (``evaluation/exact_match.py``)."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of each of these models, as ``evaluate --tasks``; ``bpb`` is bits per byte of the
    first stage's held-out corpora."""
    benchmarks: str = option("", is_path=True)
    """Folder of benchmarks on disk, as ``evaluate --data``; empty: the Hugging Face hub."""
    task_examples: int = 0
    """Maximum number of examples per part of a task; 0 is all."""
    max_new_tokens: int = 64
    """Maximum length of an answer in tokens."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        """Validate the stages and their order."""
        super().__post_init__()
        require_nonempty("", output=self.output)
        require_at_least(1, self, "", "max_new_tokens")
        require_at_least(0, self, "", "task_examples")
        if not self.stages:
            raise UserError("stages is empty; add at least one run.")
        self.linked_stages()
        names = self.stage_names()
        if len(set(names)) < len(names) or "before" in names:
            raise UserError(
                f"stages: the output folders {', '.join(names)} must have different names, none of "
                "them before."
            )

    def linked_stages(self) -> tuple[TrainConfig, ...]:
        """Return the stages with each ``init_from`` set to the output of the stage before."""
        linked = [self.stages[0]]
        for stage in self.stages[1:]:
            before = linked[-1].output
            if stage.init_from not in ("", before):
                raise UserError(
                    f"stages: {stage.output} starts from {stage.init_from}, but the stage before "
                    f"it is {before}; leave init_from empty, or set it to that."
                )
            linked.append(replace(stage, init_from=before))
        return tuple(linked)

    def stage_names(self) -> list[str]:
        """Return the names of the stages: the last parts of their output folders."""
        return [stage.output.rstrip("/").rsplit("/", 1)[-1] for stage in self.stages]
