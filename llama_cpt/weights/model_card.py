"""The README of an exported model: base model, training, data and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
import json
from typing import Any
from urllib.parse import quote

import numpy as np

from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.mixture import build_mixture
from llama_cpt.runtime.tables import markdown_table
from llama_cpt.runtime.untrusted_text import code_span, escape_markdown
from llama_cpt.weights.hub import HUB_NAME
from llama_cpt.weights.provenance import Origin

USES = {
    "transformers": """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForCausalLM.from_pretrained({name}, dtype="auto")
```
""",
    "peft": """## Use

This folder holds LoRA adapters. `base_model_name_or_path` in `adapter_config.json` names the base
model.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained({name})
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
    """Return the model card of the model ``name``, as Markdown with a YAML header.

    ``library`` is the library that loads the model, a key of ``USES``. ``licenses`` are the names
    of the license files next to the card. ``sections`` are Markdown texts for the body.
    """
    header = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if HUB_NAME.fullmatch(origin.base):
        header.append(f"base_model: {origin.base}")
    header += _license_header(licenses)
    started = f"Started from {code_span(origin.base) if origin.base else 'random weights'}"
    started += "".join(f", then run {code_span(run)}" for run in origin.runs) + "."
    if licenses:
        started += f" The terms of the base model apply: {_links(licenses)}."
    return _card(name, header, [started, *sections], library)


@dataclass(frozen=True)
class MergedModel:
    """A model in a weighted sum of models."""

    name: str
    weight: Fraction
    origin: Origin
    digests: Sequence[tuple[str, str]]
    """The name and the SHA-256 digest of each file of weights."""


def merged_model_card(name: str, models: Sequence[MergedModel], licenses: Sequence[str]) -> str:
    """Return the model card of the model ``name``, which is a weighted sum of ``models``.

    The parameter ``licenses`` is the same as in ``model_card``.
    """
    header = ["library_name: transformers", "pipeline_tag: text-generation"]
    bases = [model.origin.base for model in models if HUB_NAME.fullmatch(model.origin.base)]
    if bases:
        header += ["base_model:", *(f"- {base}" for base in dict.fromkeys(bases))]
        header.append("base_model_relation: merge")
    header += ["tags:", "- merge", *_license_header(licenses)]
    text = "The weights are a weighted sum of the weights of these models, computed in float32."
    if licenses:
        text += f" The terms of the models apply: {_links(licenses)}."
    rows = [("weight", "model", "started from")]
    digests = [("model", "file", "SHA-256")]
    for model in models:
        base = model.origin.base or "random weights"
        chain = (base, *model.origin.runs) if model.name != base else ()
        rows.append((str(model.weight), model.name, ", then ".join(chain)))
        digests += [(model.name, file, digest) for file, digest in model.digests]
    sections = [f"## Models\n\n{text}\n\n" + markdown_table(rows)]
    sections.append("## Digests\n\n" + markdown_table(digests))
    return _card(name, header, sections, "transformers")


def _card(name: str, header: Sequence[str], sections: Sequence[str], library: str) -> str:
    # A JSON string is a Python string on one line.
    literal = json.dumps(name, ensure_ascii=False)
    body = [f"# {escape_markdown(name)}", *sections, USES[library].format(name=literal)]
    return "\n".join(["---", *header, "---", ""]) + "\n" + "\n\n".join(body)


def _license_header(licenses: Sequence[str]) -> list[str]:
    file = next((file for file in licenses if file.startswith("LICENSE")), None)
    return ["license: other", f"license_link: {quote(file)}"] if file else []


def _links(files: Sequence[str]) -> str:
    return ", ".join(f"[{escape_markdown(file)}]({quote(file)})" for file in files)


def training_sections(
    config: TrainConfig, metadata: Mapping[str, Any], metrics: Sequence[dict[str, Any]]
) -> list[str]:
    """Return the sections on a run's training, data and evaluation, as Markdown.

    ``metadata`` is the metadata of the checkpoint, and ``metrics`` are the records of
    ``metrics.jsonl``.
    """
    sections = [_training(config, metadata)]
    if config.data.additional or config.data.original:
        sections.append(_data(config, metadata))
    evaluation = _evaluation(metrics)
    return [*sections, evaluation] if evaluation else sections


def _training(config: TrainConfig, metadata: Mapping[str, Any]) -> str:
    optimizer, length = config.optimizer, config.data.sequence_length
    steps = metadata["step"]
    rows = steps * config.global_batch_size
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
    if passed_over := _passed_over(metadata):
        cells.append(("rows that rollbacks passed over", f"{passed_over:,}"))
    if lora := config.lora:
        targets = ", ".join(lora.targets)
        cells.append(("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}, of {targets}"))
    return "## Training\n\n" + markdown_table([("", ""), *cells])


def _skipped_rows(metadata: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the first row and the row after the last one of each range without training."""
    return metadata.get("spikes", {}).get("skipped_rows", [])


def _passed_over(metadata: Mapping[str, Any]) -> int:
    """Return the number of rows that rollbacks passed over."""
    return sum(end - first for first, end in _skipped_rows(metadata))


def _data(config: TrainConfig, metadata: Mapping[str, Any]) -> str:
    data = config.data
    consumed = metadata["step"] * config.global_batch_size + _passed_over(metadata)
    groups = (("additional", data.additional), ("original", data.original))
    counts: dict[str, int] = {}
    text = ""
    if consumed:
        # The number of rows read per corpus does not depend on the size of the corpus.
        sizes = {corpus.name: 1 for _, corpora in groups for corpus in corpora}
        batch = config.global_batch_size
        mixture = build_mixture(data, sizes, seed=config.seed, global_batch_size=batch)
        trained = np.array(mixture.row_counts(consumed))
        for first, end in _skipped_rows(metadata):
            trained -= np.subtract(mixture.row_counts(end), mixture.row_counts(first))
        counts = dict(zip(sizes, trained.tolist(), strict=True))
        text = (
            "Additional-language mixture ratio (ALMR), the share of additional tokens in training: "
            f"target {_share(mixture.target_almr(consumed))}, realized "
            f"{_share(mixture.realized_almr(consumed))}"
        )
        text += (
            ", with the rows that rollbacks passed over.\n\n" if _passed_over(metadata) else ".\n\n"
        )
    cells = [
        (group, corpus.name, f"{counts.get(corpus.name, 0) * data.sequence_length:,}")
        for group, corpora in groups
        for corpus in corpora
    ]
    return f"## Data\n\n{text}" + markdown_table([("group", "corpus", "tokens"), *cells])


def _evaluation(metrics: Sequence[dict[str, Any]]) -> str:
    """Return a section with the first and last value of each held-out metric; '' if none exist."""
    measured: dict[str, list[float]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith("eval/") and value is not None:
                measured.setdefault(key.removeprefix("eval/"), []).append(float(value))
    if not measured:
        return ""
    cells = [(key, f"{v[0]:.4f}", f"{v[-1]:.4f}") for key, v in sorted(measured.items())]
    text = "First and last evaluation on held-out text."
    return f"## Evaluation\n\n{text}\n\n" + markdown_table([("", "first", "last"), *cells])


def _share(value: Fraction) -> str:
    return f"{float(value):.6g}"
