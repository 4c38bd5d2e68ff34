"""A checkpoint read parameter by parameter: what export and verification need of it."""

from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from llama_cpt.checkpoint import state_dict
from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER, open_run, orbax_handler
from llama_cpt.config.fields import from_dict
from llama_cpt.config.schema import ModelConfig
from llama_cpt.model.llama import abstract_llama
from llama_cpt.model.lora import abstract_adapters, merge_matrix
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable
from llama_cpt.weights.hf_config import require_same_architecture
from llama_cpt.weights.hf_weights import HfWeights
from llama_cpt.weights.lora_base_check import read_lora_base


class CheckpointReader:
    """The trained parameters in a run's folder, or in one that ``convert from-hf`` wrote.

    The newest checkpoint that is whole. Adapters come added into the weights that they were trained
    beside; those are opened when the first is asked for. Raises UserError where there is no
    checkpoint, or where it does not hold what it says it holds.
    """

    def __init__(self, folder: str) -> None:
        check_reachable(folder)
        if not epath.Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder.")
        checkpoints, step = open_run(folder)
        with checkpoints:
            self.about: dict[str, Any] = checkpoints.metadata(step)
        self.folder, self.step = folder, step
        self._path, self._opened = checkpoints.folder / str(step), ExitStack()
        try:
            model = self.about["config"]["model"]
        except (KeyError, TypeError):
            raise UserError(f"{self._path}: does not say which model it is.") from None
        self.config = from_dict(ModelConfig, model, f"{self._path}: model")
        self.lora_base = read_lora_base(self.about, folder)
        """Of a LoRA run: what it says of the weights beside its adapters."""
        abstract = abstract_llama(self.config)
        if self.lora_base:
            abstract = abstract_adapters(self.lora_base.lora, abstract)
        wanted = state_dict.to_state_dict(abstract)
        self._orbax = ocp.Checkpointer(orbax_handler())
        saved = self._orbax.metadata(self._path).item_metadata.tree
        state_dict.check_compatible(str(self._path), saved["trained"], wanted)
        self._shapes = wanted

    def parameter(self, path: str) -> jax.Array:
        """One array of the model, such as ``layers/query``, on this machine's CPU."""
        if self.lora_base is None:
            return self.stored_array(path)
        with self.lora_base.error_context(self.folder):
            matrix = self._base.parameter(path)
            self.lora_base.require(path, matrix)
        target = path.removeprefix("layers/")
        if target not in self.lora_base.lora.targets:
            return matrix
        a, b = (self.stored_array(f"{target}/{factor}") for factor in ("a", "b"))
        return merge_matrix(matrix, a, b, self.lora_base.lora.scale)

    def stored_array(self, path: str) -> jax.Array:
        """One array of the checkpoint, ``layers/query`` or ``query/a``; nothing else is read."""
        like: Any = self._shapes
        for name in path.split("/"):
            like = like[name]
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        item: Any = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=cpu)
        names = ("trained", *path.split("/"))
        for name in reversed(names):
            item = {name: item}
        arguments = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        values = self._orbax.restore(self._path, args=arguments)
        for name in names:
            values = values[name]
        return values

    @cached_property
    def _base(self) -> "CheckpointReader | HfWeights":
        source = self.lora_base.source
        if (epath.Path(source) / CHECKPOINTS_FOLDER).exists():
            base = self._opened.enter_context(CheckpointReader(source))
        else:
            base = HfWeights(source)
        require_same_architecture(self.config, base.config, source)
        return base

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()
        self._orbax.close()
