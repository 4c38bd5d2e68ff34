"""One noun for weights that a path names: a Hugging Face folder or the folder of a run.

``open_source`` is the only place that decides which of the two a path is. Everything that reads
weights goes through it, so that all consumers of a run folder read the same checkpoint: the newest
verified one.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
import json
from typing import Any, Protocol

from etils import epath
import jax
from jax.sharding import Mesh

from llama_cpt.checkpoint.checkpoint import CheckpointManager, is_run_folder, open_run
from llama_cpt.checkpoint.manifest import manifest_digest, size_and_digest
from llama_cpt.config.fields import from_dict
from llama_cpt.config.schema import ModelConfig
from llama_cpt.data.tokenizer.tokenizer import FILE_NAMES
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import abstract_adapters, merge_adapters
from llama_cpt.parallel.mesh import with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import matching
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.storage import check_reachable
from llama_cpt.weights.checkpoint_reader import CheckpointReader
from llama_cpt.weights.hf_config import read_config, require_same_architecture
from llama_cpt.weights.hf_names import checked_tensors
from llama_cpt.weights.hf_weights import HfWeights, load_hf
from llama_cpt.weights.hub import resolve
from llama_cpt.weights.lora_base_check import LoraBase, read_lora_base
from llama_cpt.weights.parameter_reader import ParameterReader
from llama_cpt.weights.safetensors import byte_reader, read_json


class WeightSource(Protocol):
    """Weights that a path names, in either format."""

    path: str
    """The folder, URL or hub name as the user gave it."""

    @property
    def architecture(self) -> ModelConfig:
        """The architecture of the model; no weights are read."""
        ...

    @property
    def tokenizer(self) -> str:
        """Path of the tokenizer that belongs to the weights; UserError if there is none."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of the stored weights, which differs between any two models."""
        ...

    def check(self, config: ModelConfig) -> None:
        """Raise UserError if the weights are missing or their architecture is not ``config``.

        Reads configs and headers only, so that hours of other work can come first.
        """
        ...

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``.

        Options of ``shapes``, such as ``remat``, are kept. Raises UserError if the
        architectures differ, in constants such as ``rope_theta`` too.
        """
        ...

    def reader(self) -> AbstractContextManager[ParameterReader]:
        """Return a reader of single parameters on this machine's CPU."""
        ...


def open_source(path: str) -> "HfFolder | RunFolder":
    """Return the weights that ``path`` names: a folder, a ``gs://`` URL or a name on the hub."""
    return RunFolder(path) if is_run_folder(path) else HfFolder(path)


class HfFolder:
    """A Hugging Face folder, local or ``gs://``, or a model on the hub."""

    def __init__(self, path: str) -> None:
        self.path = path

    def folder(self, *, weights: bool = True) -> str:
        """Return the folder itself; a hub model is downloaded, without weights if so requested."""
        return resolve(self.path, weights=weights)

    @property
    def architecture(self) -> ModelConfig:
        """The architecture in ``config.json``."""
        return read_config(self.folder(weights=False))

    @property
    def tokenizer(self) -> str:
        """The folder, if it holds a tokenizer."""
        folder = self.folder(weights=False)
        if not _holds_tokenizer(folder):
            raise _no_tokenizer(self.path)
        return folder

    def fingerprint(self) -> str:
        """Return sizes and SHA-256 digests of all safetensors files, as JSON."""
        folder = epath.Path(self.folder())
        files = matching(folder, "*.safetensors")
        if not files:
            raise UserError(f"{folder}: holds no *.safetensors files to identify its weights by.")
        with Progress(f"digest {folder.name}", float(len(files)), "files") as progress:
            digests = []
            for file in files:
                digests.append((file.name, *size_and_digest(file)))
                progress.update(1.0)
        return json.dumps(digests)

    def check(self, config: ModelConfig) -> None:
        """Compare ``config`` and the headers of local files with the model that is needed."""
        folder = self.folder(weights=False)
        require_same_architecture(config, read_config(folder), self.path)
        # The weights of a hub model have not been downloaded yet.
        if epath.Path(self.path).expanduser().exists():
            with byte_reader() as reader:
                checked_tensors(folder, config, reader)

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``."""
        model = load_hf(self.folder(), shapes.config, mesh)
        return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))

    def reader(self) -> AbstractContextManager[HfWeights]:
        """Return a reader of single parameters on this machine's CPU."""
        return nullcontext(HfWeights(self.folder()))


class RunFolder:
    """The newest verified checkpoint of a run, or of a folder that ``convert from-hf`` wrote.

    The step is chosen on first use and stays the same for the life of the object, even if the run
    saves newer checkpoints meanwhile. In a multi-process run all processes use it together, because
    a checkpoint is verified by all. Adapters come merged into the weights that they were trained
    on. ``path`` may also name the folder of checkpoints itself.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._step: int | None = None

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        if self._step is None:
            with self._open():
                pass
        return self._step

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The JSON that the checkpoint was saved with: resolved config, rows consumed and more."""
        with self._open() as checkpoints:
            return checkpoints.metadata(self._step)

    @cached_property
    def architecture(self) -> ModelConfig:
        """The architecture in the checkpoint's metadata."""
        try:
            model = self.metadata["config"]["model"]
        except (KeyError, TypeError):
            raise UserError(
                f"{self.path}: the metadata of checkpoint {self._step} has no config.model; name a "
                "folder that train or convert from-hf wrote."
            ) from None
        return from_dict(ModelConfig, model, self.path)

    @cached_property
    def lora_base(self) -> LoraBase | None:
        """The base weights of a LoRA run; None if the checkpoint holds a whole model."""
        return read_lora_base(self.metadata, self.path)

    @property
    def tokenizer(self) -> str:
        """The folder if it holds a tokenizer, else the ``data.tokenizer`` of the run."""
        folder = str(epath.Path(self.path).expanduser())
        if _holds_tokenizer(folder):
            return folder
        # The tokenizer may have moved since the checkpoint was saved; config.json is the newer one.
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
                f"{self.path}: data.tokenizer={error} Name its tokenizer with --tokenizer."
            ) from error

    def fingerprint(self) -> str:
        """Return the SHA-256 of the digests in the checkpoint's manifest."""
        with self._open() as checkpoints:
            return manifest_digest(checkpoints.folder / str(self._step))

    def check(self, config: ModelConfig) -> None:
        """Verify the checkpoint and compare its architecture with ``config``; its base as well."""
        require_same_architecture(config, self.architecture, self.path)
        if self.lora_base:
            with self.lora_base.error_context(self.path):
                open_source(self.lora_base.source).check(config)

    def load(self, shapes: Llama, mesh: Mesh) -> Llama:
        """Return the parameters in the tree of ``shapes``, sharded over ``mesh``."""
        require_same_architecture(shapes.config, self.architecture, self.path)
        base = self.lora_base
        trained = abstract_adapters(base.lora, shapes) if base else shapes
        with self._open() as checkpoints:
            trained = checkpoints.restore_trained(self._step, with_shardings(trained, mesh))
        if base is None:
            return trained
        with base.error_context(self.path):
            model = open_source(base.source).load(shapes, mesh)
            base.require_all(model)
        return merge_adapters(model, trained)

    def reader(self) -> CheckpointReader:
        """Return a reader of single parameters on this machine's CPU."""
        with self._open() as checkpoints:
            checkpoint = checkpoints.folder / str(self._step)
        return CheckpointReader(
            checkpoint, self.architecture, self.path, self.lora_base, self._base_reader
        )

    def _base_reader(self) -> AbstractContextManager[ParameterReader]:
        return open_source(self.lora_base.source).reader()

    def _open(self) -> CheckpointManager:
        check_reachable(self.path)
        if not epath.Path(self.path).expanduser().is_dir():
            raise UserError(f"{self.path}: no such folder.")
        checkpoints, self._step = open_run(self.path, self._step)
        return checkpoints


def _holds_tokenizer(folder: str) -> bool:
    # Meta's own downloads keep the tokenizer in a folder of this name.
    return any((epath.Path(folder) / name).exists() for name in (*FILE_NAMES, "original"))


def _read_config(folder: str) -> Any:
    """Return the ``config.json`` of a run folder, or None if it has none."""
    path = epath.Path(folder) / "config.json"
    return read_json(str(path)) if path.exists() else None


def _configured_tokenizer(config: Any) -> str:
    """Return ``data.tokenizer`` of a run's config as JSON, '' if it has none."""
    data = config.get("data") if isinstance(config, dict) else None
    return (data.get("tokenizer") or "") if isinstance(data, dict) else ""


def _no_tokenizer(path: str) -> UserError:
    return UserError(f"{path} holds no tokenizer: name the model's own with --tokenizer.")
