"""The config of a pipeline: training stages, each of which starts from the previous stage."""

from dataclasses import dataclass, field, replace
from typing import Literal

from llama_cpt.config.fields import (
    ConfigSection,
    option,
    require_at_least,
    require_nonempty,
    traits,
)
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class PipelineConfig(ConfigSection):
    """A sequence of runs such as CPT, SFT and DPO, followed by an export and a report."""

    output: str = field(metadata=traits(is_path=True))
    """Folder of the report. Its subfolder ``exported`` contains the model of the last stage in
    Hugging Face format."""
    stages: tuple[TrainConfig, ...]
    """The runs in order. A run without ``init_from`` starts from the previous run. In the
    report, a stage is named after the last part of its ``output`` path."""
    prompts: tuple[str, ...] = ()
    """Prompts for the report. The initial model and the model of each stage answer all prompts."""
    questions: str = option("", former_name="examination", is_path=True)
    """JSON Lines file of questions with correct answers (see ``evaluation/exact_match.py``)."""
    tasks: tuple[str, ...] = ()
    """Benchmarks on which the initial model and the model of each stage are evaluated, as in
    ``evaluate --tasks``. ``bpb`` is bits per byte on the held-out corpora of the first stage."""
    benchmarks: str = option("", is_path=True)
    """Folder of benchmark files, as in ``evaluate --data``; if empty, benchmarks are downloaded
    from the Hugging Face hub."""
    task_examples: int = 0
    """Maximum number of examples per task, and of documents per corpus of ``bpb``; 0 means all."""
    max_new_tokens: int = 64
    """Maximum length of an answer in tokens."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        """Validate the stages, their names and their order."""
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
                f"stages: the output folders {', '.join(names)} must have different names "
                "and not the name before."
            )

    def linked_stages(self) -> tuple[TrainConfig, ...]:
        """Return the stages with ``init_from`` set to the ``output`` of the previous stage.

        ``init_from`` of the first stage is unchanged. Raises UserError if ``init_from`` of a later
        stage names a different folder.
        """
        linked = [self.stages[0]]
        for stage in self.stages[1:]:
            before = linked[-1].output
            if stage.init_from not in ("", before):
                raise UserError(
                    f"stages: {stage.output} starts from {stage.init_from}, but the stage before "
                    f"it is {before}; leave init_from empty, or set it to {before}."
                )
            linked.append(replace(stage, init_from=before))
        return tuple(linked)

    def stage_names(self) -> list[str]:
        """Return the name of each stage: the last part of its ``output`` path."""
        return [stage.output.rstrip("/").rsplit("/", 1)[-1] for stage in self.stages]
