"""Reading of a model's weights one parameter at a time, for export and verification."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol

from etils import epath
import jax
import orbax.checkpoint as ocp

from llama_cpt.checkpoint import state_dict
from llama_cpt.checkpoint.orbax_handler import orbax_handler
from llama_cpt.config.model import ModelConfig
from llama_cpt.model.llama import abstract_llama
from llama_cpt.model.lora import abstract_adapters, merge_matrix
from llama_cpt.weights.hf_config import require_same_architecture
from llama_cpt.weights.lora_base_check import LoraBase


class ParameterReader(Protocol):
    """A reader of single parameters, for models that do not fit into host memory."""

    config: ModelConfig
    """The architecture of the model."""

    def parameter(self, path: str) -> jax.Array:
        """Return the float32 array of a parameter, such as ``layers/query``, on the host's CPU."""
        ...


class CheckpointReader:
    """A reader that returns the parameters of one checkpoint, one at a time.

    ``checkpoint`` is the folder of a verified checkpoint, and ``run`` is the run's folder, which
    appears in error messages. If the checkpoint holds LoRA adapters, ``parameter`` merges the
    adapters into the base weights. In this case, ``lora_base`` describes the base weights, and
    ``open_base`` is called when the first parameter is requested. The constructor raises UserError
    if the checkpoint does not hold the arrays of ``config``.
    """

    def __init__(
        self,
        checkpoint: epath.Path,
        config: ModelConfig,
        run: str,
        lora_base: LoraBase | None,
        open_base: Callable[[], AbstractContextManager[ParameterReader]],
    ) -> None:
        self.config, self.lora_base = config, lora_base
        self._checkpoint, self._run, self._open_base = checkpoint, run, open_base
        abstract = abstract_llama(config)
        if lora_base:
            abstract = abstract_adapters(lora_base.lora, abstract)
        self._shapes = state_dict.to_state_dict(abstract)
        self._opened = ExitStack()
        self._orbax = ocp.Checkpointer(orbax_handler())
        saved = self._orbax.metadata(checkpoint).item_metadata
        assert saved is not None
        state_dict.check_compatible(str(checkpoint), saved.tree["trained"], self._shapes)

    def parameter(self, path: str) -> jax.Array:
        """Return the float32 array of one parameter, such as ``layers/query``, on the host's CPU.

        Adapters are merged into the array. Raises UserError if the base weights are missing or
        have changed since the run.
        """
        if self.lora_base is None:
            return self.stored_array(path)
        with self.lora_base.error_context(self._run):
            matrix = self._base.parameter(path)
            self.lora_base.require(path, matrix)
        target = path.removeprefix("layers/")
        if target not in self.lora_base.lora.targets:
            return matrix
        a, b = (self.stored_array(f"{target}/{factor}") for factor in ("a", "b"))
        return merge_matrix(matrix, a, b, self.lora_base.lora.scale)

    def stored_array(self, path: str) -> jax.Array:
        """Read one array from the checkpoint, and return it on the host's CPU.

        ``path`` is a parameter, such as ``layers/query``, or a LoRA factor, such as ``query/a``.
        """
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
        values = self._orbax.restore(self._checkpoint, args=arguments)
        for name in names:
            values = values[name]
        return values

    @cached_property
    def _base(self) -> ParameterReader:
        assert self.lora_base is not None
        base = self._opened.enter_context(self._open_base())
        require_same_architecture(self.config, base.config, self.lora_base.source)
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
