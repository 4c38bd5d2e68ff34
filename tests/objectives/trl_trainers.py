"""Losses and metrics of one batch on a tiny Llama, computed by TRL's trainers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
import transformers
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tests.objectives.preferences import VOCAB, Judged, Pair


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t0", eos_token="t1"
    )


def _options(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False}


def dpo_trainer(model: Any, reference: Any, folder: Path) -> DPOTrainer:
    rows = Dataset.from_list([{"prompt": "t5 ", "chosen": "t7", "rejected": "t9"}])
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(**_options(folder)),
        train_dataset=rows,
        processing_class=_tokenizer(),
    )


def kto_trainer(model: Any, reference: Any, folder: Path) -> KTOTrainer:
    rows = Dataset.from_list([{"prompt": "t5 ", "completion": "t7", "label": True}] * 2)
    return KTOTrainer(
        model=model,
        ref_model=reference,
        args=KTOConfig(**_options(folder), per_device_train_batch_size=2),
        train_dataset=rows,
        processing_class=_tokenizer(),
    )


def run_dpo(
    trainer: DPOTrainer, pairs: list[Pair], **settings: Any
) -> tuple[float, dict[str, Any]]:
    """Return TRL's loss and metrics of ``pairs``.

    ``settings`` are set as attributes of the trainer, such as ``loss_types`` and ``beta``.
    """
    for name, value in settings.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    examples = [
        {"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs
    ]
    return _run(trainer, trainer.data_collator(examples))


def run_kto(
    trainer: KTOTrainer, answers: list[Judged], columns: Any, **settings: Any
) -> tuple[float, dict[str, Any]]:
    """Return TRL's loss and metrics of ``answers``.

    ``columns`` has the reference log-probabilities (answers, 2) of each answer and its mismatch. If
    it is None, TRL computes them. ``settings`` are set as attributes of the trainer.
    """
    for name, value in settings.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    examples = [
        {
            "prompt_ids": j.prompt,
            "completion_ids": j.answer,
            "KL_completion_ids": j.mismatch,
            "label": j.good,
        }
        for j in answers
    ]
    inputs = trainer.data_collator(examples)
    if columns is not None:
        names = ("ref_logps", "ref_KL_logps")
        inputs |= {name: torch.tensor(columns[:, i]) for i, name in enumerate(names)}
    return _run(trainer, inputs)


def _run(trainer: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {name: values[-1] for name, values in trainer._metrics["train"].items()}


def _sides(pairs: list[Pair]) -> dict[str, Any]:
    """Return the chosen and the rejected answers as the collators of CPO and ORPO do."""
    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        whole = [pair.prompt + getattr(pair, side) for pair in pairs]
        width = max(len(ids) for ids in whole)
        pad = lambda ids, value, width=width: ids + [value] * (width - len(ids))
        labels = [[-100] * len(pair.prompt) + getattr(pair, side) for pair in pairs]
        masks = [[1] * len(ids) for ids in whole]
        batch[f"{side}_input_ids"] = torch.tensor([pad(ids, 0) for ids in whole])
        batch[f"{side}_attention_mask"] = torch.tensor([pad(ids, 0) for ids in masks])
        batch[f"{side}_labels"] = torch.tensor([pad(ids, -100) for ids in labels])
    return batch


def run_odds(
    kind: type[Any], model: Any, pairs: list[Pair], **settings: Any
) -> tuple[float, dict[str, Any]]:
    """Return TRL's loss and metrics of ``pairs`` for SimPO (CPOTrainer) or ORPO (ORPOTrainer).

    The trainer is created without its ``__init__``; ``settings`` are set as its attributes.
    """
    assert kind in (CPOTrainer, ORPOTrainer)
    trainer: Any = object.__new__(kind)
    device = torch.device("cpu")
    accelerator = SimpleNamespace(device=device, gather_for_metrics=lambda x: x)
    defaults = {"is_encoder_decoder": False, "aux_loss_enabled": False, "label_smoothing": 0.0}
    defaults |= {"pad_token_id": 0, "padding_value": 0, "alpha": 0.0, "cpo_alpha": 0.0}
    for name, value in (defaults | {"accelerator": accelerator} | settings).items():
        setattr(trainer, name, value)
    model.zero_grad()
    loss, metrics = trainer.get_batch_loss_metrics(model, _sides(pairs))
    loss.backward()
    return loss.item(), metrics


def sft_loss(
    model: Any, conversations: list[tuple[list[int], list[int]]], folder: Path, *, packing: bool
) -> float:
    """Return TRL's SFT loss on the answers of all (prompt, answer) pairs, in one batch."""
    rows = [
        {"input_ids": prompt + answer, "assistant_masks": [0] * len(prompt) + [1] * len(answer)}
        for prompt, answer in conversations
    ]
    length = sum(len(row["input_ids"]) for row in rows)
    config = SFTConfig(
        **_options(folder),
        per_device_train_batch_size=len(rows),
        packing=packing,
        max_length=length,
        eos_token="t1",
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    assert inputs["input_ids"].shape[0] == (1 if packing else len(rows))
    assert isinstance(trainer.model, torch.nn.Module)
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, inputs).item()
