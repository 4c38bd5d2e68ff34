"""The README of an exported model: base model, training, data and evaluation."""

from collections.abc import Sequence
from fractions import Fraction
import json
from typing import Any

from etils import epath

from llama_cpt.config.schema import CorpusConfig, TrainConfig
from llama_cpt.data.mixture import build_mixture
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.tables import markdown_table
from llama_cpt.weights.hub import HUB_NAME
from llama_cpt.weights.provenance import Origin

USES = {
    "transformers": """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
```
""",
    "peft": """## Use

Adapters: `base_model_name_or_path` in `adapter_config.json` names their base model.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
```
""",
}


def model_card(
    name: str,
    origin: Origin,
    licenses: Sequence[str],
    sections: Sequence[str],
    library: str = "transformers",
) -> str:
    """Return the card of a model called ``name``, which ``library`` (a key of ``USES``) loads.

    ``licenses`` are the names of the base model's license files, copied next to the card;
    ``sections`` are Markdown.
    """
    header = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if HUB_NAME.fullmatch(origin.base):
        header.append(f"base_model: {origin.base}")
    license_file = next((file for file in licenses if file.startswith("LICENSE")), None)
    if license_file:
        header += ["license: other", f"license_link: {license_file}"]
    started = f"Started from {f'`{origin.base}`' if origin.base else 'random weights'}"
    started += "".join(f", then run `{run}`" for run in origin.runs) + "."
    if licenses:
        started += f" The base's terms apply: {', '.join(f'[{f}]({f})' for f in licenses)}."
    body = [f"# {name}", started, *sections, USES[library].format(name=name)]
    return "\n".join(["---", *header, "---", ""]) + "\n" + "\n\n".join(body)


def training_sections(
    config: TrainConfig, rows_consumed: int, metrics: Sequence[dict[str, Any]]
) -> list[str]:
    """Return data, realized ALMR, learning rate, tokens and evaluation of a run, as Markdown."""
    sections = [_training(config, rows_consumed)]
    if config.data.additional or config.data.original:
        sections.append(_data(config, rows_consumed))
    evaluation = _evaluation(metrics)
    return [*sections, evaluation] if evaluation else sections


def read_metrics(path: epath.Path, last_step: int) -> list[dict[str, Any]]:
    """Return the lines of a run's ``metrics.jsonl`` up to ``last_step``; none without a file."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}).") from None
    return [line for line in lines if line.get("step", 0) <= last_step]


def _training(config: TrainConfig, rows: int) -> str:
    optimizer, length = config.optimizer, config.data.sequence_length
    steps = rows // config.global_batch_size
    cells = [
        ("steps", f"{steps:,} of {config.num_steps:,}"),
        ("tokens", f"{rows * length:,} ({rows:,} rows of {length:,})"),
        ("tokens per step", f"{config.global_batch_size * length:,}"),
        ("peak learning rate", f"{optimizer.peak_learning_rate:g}"),
        ("schedule", f"{optimizer.schedule}, {optimizer.warmup_steps:,} warm-up steps"),
        ("weight decay", f"{optimizer.weight_decay:g}"),
        ("compute type", config.compute.dtype),
        ("seed", str(config.seed)),
    ]
    if lora := config.lora:
        targets = ", ".join(lora.targets)
        cells.append(("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}, of {targets}"))
    return "## Training\n\n" + markdown_table([("", ""), *cells])


def _data(config: TrainConfig, rows: int) -> str:
    data = config.data
    groups = (("additional", data.additional), ("original", data.original))
    counts: dict[str, int] = {}
    text = ""
    if rows:
        # The number of rows in a corpus changes which rows are read, but not how many.
        sizes = {corpus.name: 1 for _, corpora in groups for corpus in corpora}
        batch = config.global_batch_size
        mixture = build_mixture(data, sizes, seed=config.seed, global_batch_size=batch)
        counts = dict(zip(sizes, mixture.row_counts(rows), strict=True))
        text = (
            "Additional-language mixture ratio (ALMR), the share of additional tokens in training: "
            f"target {_share(mixture.target_almr(rows))}, realized "
            f"{_share(mixture.realized_almr(rows))}.\n\n"
        )
    cells = [
        _corpus_row(group, corpus, counts.get(corpus.name, 0) * data.sequence_length)
        for group, corpora in groups
        for corpus in corpora
    ]
    return f"## Data\n\n{text}" + markdown_table([("group", "corpus", "tokens"), *cells])


def _corpus_row(group: str, corpus: CorpusConfig, tokens: int) -> tuple[str, ...]:
    return group, corpus.name, f"{tokens:,}"


def _evaluation(metrics: Sequence[dict[str, Any]]) -> str:
    """Return a table of the first and last value of each held-out metric, if any."""
    measured: dict[str, list[float]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith("eval/") and value is not None:
                measured.setdefault(key.removeprefix("eval/"), []).append(float(value))
    if not measured:
        return ""
    cells = [(key, f"{v[0]:.4f}", f"{v[-1]:.4f}") for key, v in sorted(measured.items())]
    return "## Evaluation\n\nHeld-out text.\n\n" + markdown_table([("", "first", "last"), *cells])


def _share(value: Fraction) -> str:
    return f"{float(value):.6g}"
