"""Access to model weights by path, for Hugging Face folders and run folders.

Only ``open_source`` decides whether a path is a Hugging Face folder or a run folder. All code that
reads weights calls ``open_source``, so all commands read the same checkpoint of a run: the newest
checkpoint that passes verification.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
import json
from typing import Any, Protocol

from etils import epath
import jax
from jax.sharding import Mesh

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.manifest import manifest_digest, size_and_digest
from llama_cpt.checkpoint.run_folder import is_run_folder, open_run
from llama_cpt.config.fields import from_dict
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import DataConfig, TrainConfig
from llama_cpt.data.tokenizer.base import TOKENIZER_OPTION
from llama_cpt.data.tokenizer.tokenizer import FILE_NAMES
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import abstract_adapters, merge_adapters
from llama_cpt.parallel.mesh import with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.storage import check_reachable
from llama_cpt.weights.hf_config import LEAVE_OUT, require_same_architecture
from llama_cpt.weights.hf_names import checked_tensors
from llama_cpt.weights.hf_weights import HfWeights, load_hf
from llama_cpt.weights.hub import resolve
from llama_cpt.weights.lora_base_check import LoraBase, read_lora_base
from llama_cpt.weights.parameter_reader import CheckpointReader, ParameterReader
from llama_cpt.weights.safetensors import byte_reader, require_one_source


class WeightSource(Protocol):
    """The weights at a path, in a Hugging Face folder or a run folder."""

    path: str
    """The folder, URL or hub name, as the user wrote it."""

    @property
    def architecture(self) -> ModelConfig:
        """The architecture of the model. No weights are read."""
        ...

    @property
    def tokenizer(self) -> str:
        """The path of the model's tokenizer. Raises UserError if the tokenizer is missing."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of the stored weights."""
        ...

    def check(self, config: ModelConfig) -> None:
        """Raise UserError if the weights are missing or their architecture is not ``config``.

        The weights are not loaded, so a caller can check the source before a long computation.
        """
        ...

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``.

        The result has the options of ``shapes``, such as ``remat``. Raises UserError if the
        architectures differ, even if they differ only in a constant such as ``rope_theta``.
        """
        ...

    def reader(self) -> AbstractContextManager[ParameterReader]:
        """Return a reader that loads single parameters onto the host's CPU."""
        ...


def open_source(path: str) -> "HfFolder | RunFolder":
    """Return the weights at ``path``, which is a folder, a ``gs://`` URL or a name on the hub."""
    return RunFolder(path) if is_run_folder(path) else HfFolder(path)


class HfFolder:
    """The weights in a Hugging Face folder, which is local, on ``gs://`` or on the hub."""

    def __init__(self, path: str) -> None:
        self.path = path

    def folder(self, *, weights: bool = True) -> str:
        """Return the local folder or ``gs://`` URL. A model on the hub is downloaded first.

        With ``weights=False``, only the tokenizer, config and license are downloaded.
        """
        return resolve(self.path, weights=weights)

    @property
    def architecture(self) -> ModelConfig:
        """The architecture that ``config.json`` describes."""
        return ModelConfig.from_hf(self.folder(weights=False))

    @property
    def tokenizer(self) -> str:
        """The path of the folder, which holds the tokenizer.

        Raises UserError if the folder does not hold a tokenizer.
        """
        folder = self.folder(weights=False)
        if not _holds_tokenizer(folder):
            raise _no_tokenizer(self.path)
        return folder

    def fingerprint(self) -> str:
        """Return the names, sizes and SHA-256 digests of all safetensors files, as JSON."""
        folder = epath.Path(self.folder())
        require_one_source(str(folder))
        files = matching(folder, "*.safetensors")
        if not files:
            raise UserError(
                f"{folder}: holds no *.safetensors files; name a folder with a model's weights."
            )
        with Progress(f"digest {folder.name}", float(len(files)), "files") as progress:
            digests = []
            for file in files:
                digests.append((file.name, *size_and_digest(file)))
                progress.update(1.0)
        return json.dumps(digests)

    def check(self, config: ModelConfig) -> None:
        """Raise UserError if ``config.json`` or a safetensors header does not match ``config``.

        Headers of a model on the hub are not checked, because this method downloads no weights.
        """
        folder = self.folder(weights=False)
        require_same_architecture(config, ModelConfig.from_hf(folder), self.path, LEAVE_OUT)
        # The weights of a model on the hub have not been downloaded at this point.
        if epath.Path(self.path).expanduser().exists():
            with byte_reader() as reader:
                checked_tensors(folder, config, reader)

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``."""
        model = load_hf(self.folder(), shapes.config, mesh)
        return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))

    def reader(self) -> AbstractContextManager[HfWeights]:
        """Return a reader that loads single parameters onto the host's CPU."""
        return nullcontext(HfWeights(self.folder()))


class RunFolder:
    """The weights in the newest verified checkpoint of a run or of a ``convert from-hf`` output.

    The checkpoint is chosen on first use. The object keeps this choice, even if the run saves a
    newer checkpoint later. In a multi-process run, all processes must call the same methods,
    because they verify the checkpoint together. LoRA adapters are merged into their base weights.
    ``path`` is the run's folder or the subfolder that contains the checkpoints.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._step: int | None = None

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        if self._step is None:
            with self._open():
                pass
        assert self._step is not None
        return self._step

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The checkpoint's metadata, which includes the config and the number of rows consumed."""
        with self._open() as checkpoints:
            return checkpoints.metadata(self.step)

    @cached_property
    def architecture(self) -> ModelConfig:
        """The architecture that the checkpoint's metadata describes."""
        try:
            model = self.metadata["config"]["model"]
        except (KeyError, TypeError):
            raise UserError(
                f"{self.path}: the metadata of checkpoint {self._step} has no config.model; name a "
                "folder that train or convert from-hf wrote."
            ) from None
        return from_dict(ModelConfig, model, self.path)

    @cached_property
    def data_config(self) -> DataConfig | None:
        """The run's ``data``; None for a folder that ``convert from-hf`` wrote."""
        config = self.metadata["config"]
        return from_dict(TrainConfig, config, self.path).data if "init_from" in config else None

    @cached_property
    def lora_base(self) -> LoraBase | None:
        """A description of the base weights; None if the checkpoint holds a whole model."""
        return read_lora_base(self.metadata, self.path)

    @property
    def tokenizer(self) -> str:
        """The run's folder if it holds a tokenizer, otherwise the run's ``data.tokenizer``.

        Raises UserError if the tokenizer does not exist.
        """
        folder = str(epath.Path(self.path).expanduser())
        if _holds_tokenizer(folder):
            return folder
        # If the tokenizer was moved after the checkpoint was saved, only config.json is up to date.
        path = _configured_tokenizer(_read_config(folder)) or _configured_tokenizer(
            (self.metadata or {}).get("config")
        )
        if not path:
            raise _no_tokenizer(self.path)
        file = epath.Path(path).expanduser()
        try:
            return str(file) if file.exists() else resolve(path, weights=False)
        except UserError as error:
            raise UserError(
                f"{self.path}: data.tokenizer={error} Restore the run's tokenizer, or name it "
                f"{TOKENIZER_OPTION}."
            ) from error

    def fingerprint(self) -> str:
        """Return one SHA-256 digest over all file digests in the checkpoint's manifest."""
        with self._open() as checkpoints:
            return manifest_digest(checkpoints.folder / str(self._step))

    def check(self, config: ModelConfig) -> None:
        """Verify the checkpoint, and raise UserError if its architecture is not ``config``.

        The base weights of a LoRA run are checked as well.
        """
        require_same_architecture(config, self.architecture, self.path, LEAVE_OUT)
        if self.lora_base:
            with self.lora_base.error_context(self.path):
                open_source(self.lora_base.source).check(config)

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``."""
        require_same_architecture(shapes.config, self.architecture, self.path)
        base = self.lora_base
        trained = abstract_adapters(base.lora, shapes) if base else shapes
        with self._open() as checkpoints:
            trained = checkpoints.restore_trained(self.step, with_shardings(trained, mesh))
        if base is None:
            return trained
        with base.error_context(self.path):
            model = open_source(base.source).load(shapes, mesh)
            base.require_all(model)
        return merge_adapters(model, trained)

    def reader(self) -> CheckpointReader:
        """Return a reader that loads single parameters onto the host's CPU."""
        with self._open() as checkpoints:
            checkpoint = checkpoints.folder / str(self._step)
        return CheckpointReader(
            checkpoint, self.architecture, self.path, self.lora_base, self._base_reader
        )

    def _base_reader(self) -> AbstractContextManager[ParameterReader]:
        assert self.lora_base is not None
        return open_source(self.lora_base.source).reader()

    def _open(self) -> CheckpointManager:
        check_reachable(self.path)
        if not epath.Path(self.path).expanduser().is_dir():
            raise UserError(f"{self.path}: no such folder.")
        checkpoints, self._step = open_run(self.path, self._step)
        return checkpoints


def _holds_tokenizer(folder: str) -> bool:
    # In Meta's own downloads, the tokenizer is in a subfolder with the name "original".
    return any((epath.Path(folder) / name).exists() for name in (*FILE_NAMES, "original"))


def _read_config(folder: str) -> Any:
    """Return the ``config.json`` of a run folder, or None if the file does not exist."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        return None
    remedy = f"restore it from a copy, or name the run's tokenizer {TOKENIZER_OPTION}"
    return read_json_object(str(path), remedy)


def _configured_tokenizer(config: Any) -> str:
    """Return ``data.tokenizer`` of ``config``, a run's config as JSON; '' if it is not set."""
    data = config.get("data") if isinstance(config, dict) else None
    tokenizer = (data.get("tokenizer") or "") if isinstance(data, dict) else ""
    if not isinstance(tokenizer, str):
        raise UserError(
            f"data.tokenizer={repr(tokenizer)[:80]} of the run must be a string; correct it in the "
            f"run's config.json, or name the run's tokenizer {TOKENIZER_OPTION}."
        )
    return tokenizer


def _no_tokenizer(path: str) -> UserError:
    return UserError(
        f"{path} holds no tokenizer; copy the model's tokenizer to it, or name the tokenizer "
        f"{TOKENIZER_OPTION}."
    )
