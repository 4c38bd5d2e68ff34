"""The tokenizer, chat template and generation settings in the folder of an exported model."""

from dataclasses import dataclass
import json
import logging
from pathlib import Path
import tempfile
from typing import Any

from etils import epath

from llama_cpt.data.chat.template import TEMPLATE_FILE, find_template
from llama_cpt.data.tokenizer.export import export_tokenizer
from llama_cpt.data.tokenizer.settings import CONFIG_FILE
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.weights.prompt_format import (
    GENERATION_FILE,
    PromptFormat,
    eos_ids,
    prompt_format,
)
from llama_cpt.weights.provenance import TOKENIZER_FILES, Origin, copy_files
from llama_cpt.weights.source import HfFolder, RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptFiles:
    """The files that determine the prompts of an exported model and the ends of its answers."""

    tokenizer: str | None
    """The path of the tokenizer; None if no tokenizer was found."""
    prompts: PromptFormat | None
    """The prompt format of the model; None if no tokenizer was found."""
    settings_folder: str | None
    """The folder of the base model, if the base model has the vocabulary of the exported model."""
    base_config: dict[str, Any]
    """The ``config.json`` in ``settings_folder``; empty without such a folder."""
    chats: bool
    """True if the model was trained on chats by this package."""

    @property
    def token_ids(self) -> dict[str, int | list[int] | None]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of the exported model.

        The ids of the base model are kept. For a model that was trained on chats, the ids that end
        an answer are added to ``eos_token_id``.
        """
        found = {name: self.base_config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
        if self.prompts is not None:
            tokenizer = self.prompts.tokenizer
            if "bos_token_id" not in self.base_config:
                found["bos"] = tokenizer.bos_id
            if "pad_token_id" not in self.base_config:
                found["pad"] = tokenizer.special_tokens.get(tokenizer.names.get("pad_token", ""))
            ends = eos_ids(self.base_config) or [tokenizer.eos_id]
            if self.chats:
                ends = list(dict.fromkeys((*ends, *self.prompts.stop_ids)))
            found["eos"] = ends[0] if len(ends) == 1 else ends
        return {f"{name}_token_id": value for name, value in found.items()}

    def write(self, folder: epath.Path) -> None:
        """Write the tokenizer, the chat template and the generation settings into ``folder``."""
        prompts = self.prompts
        if self.settings_folder:
            copy_files(self.settings_folder, folder, (GENERATION_FILE,))
        if prompts and prompts.generation and (self.chats or not self.settings_folder):
            stops = prompts.stop_ids if self.chats else ()
            ends = dict.fromkeys((*eos_ids(prompts.generation), *stops))
            values = prompts.generation | {"eos_token_id": list(ends)}
            (folder / GENERATION_FILE).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        if self.tokenizer is not None and prompts is not None:
            _write_tokenizer(self.tokenizer, folder)
            _write_template(prompts, folder, chats=self.chats)


def run_prompt_files(run: RunFolder, origin: Origin, tokenizer: str | None) -> PromptFiles:
    """Return the files for the model of a run, whose base model is ``origin``.

    ``tokenizer`` is a path; the default is the run's tokenizer. If the run's tokenizer is missing,
    a warning is logged.
    """
    path = tokenizer or _find_tokenizer(run)
    base_config = origin.config()
    if base_config.get("vocab_size") != run.architecture.vocab_size:
        base_config = {}
    data = run.data_config
    return PromptFiles(
        path,
        prompt_format(run, path) if path else None,
        origin.folder if base_config else None,
        base_config,
        chats=data is not None and bool(data.corpora_of("conversations")),
    )


def hf_prompt_files(source: HfFolder) -> PromptFiles:
    """Return the files for the model in a Hugging Face folder, which are copies of its own files.

    If the folder holds no tokenizer, a warning is logged.
    """
    folder, path = source.folder(weights=False), _find_tokenizer(source)
    base_config = read_json_object(f"{folder}/config.json", "restore it from a copy")
    prompts = prompt_format(source, path) if path else None
    return PromptFiles(path, prompts, folder, base_config, chats=False)


def _find_tokenizer(source: HfFolder | RunFolder) -> str | None:
    """Return the path of a model's tokenizer.

    If the tokenizer is missing, log a warning and return None.
    """
    try:
        return source.tokenizer
    except UserError as error:
        logger.warning("no tokenizer is written: %s", error)
        return None


def _write_template(prompts: PromptFormat, folder: epath.Path, *, chats: bool) -> None:
    """Write the chat template into ``folder``, unless the tokenizer's files contain it.

    A model that was not trained on chats gets a template only if one is next to its tokenizer.
    """
    template = prompts.template
    if template is None or not (chats or find_template(prompts.tokenizer.path)):
        return
    if find_template(str(folder / "tokenizer.json")) == template.source:
        return
    (folder / TEMPLATE_FILE).write_text(template.source, encoding="utf-8")
    config_file = folder / CONFIG_FILE
    if config_file.exists():
        values = read_json_object(str(config_file), "export the tokenizer again")
        if values.pop("chat_template", None):
            config_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _write_tokenizer(source: str, folder: epath.Path) -> None:
    """Write the tokenizer ``source`` into ``folder`` in Hugging Face's format.

    If the tokenizer cannot be converted, log a warning and copy the tokenizer unchanged.
    """
    path = epath.Path(source)
    if (path / "tokenizer.json").exists() and (path / "tokenizer_config.json").exists():
        copy_files(source, folder, TOKENIZER_FILES)
    else:
        with tempfile.TemporaryDirectory() as converted:
            try:
                export_tokenizer(source, converted)
            except UserError as error:
                logger.warning("%s The tokenizer is copied unchanged.", error)
                epath.Path(load_tokenizer(source).path).copy(Path(converted) / "tokenizer.model")
            copy_files(converted, folder, ("*",))
