"""A checkpoint read parameter by parameter: what export and verification need of it."""

from types import TracebackType
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from llama_cpt.config import ModelConfig
from llama_cpt.errors import UserError
from llama_cpt.fields import from_dict
from llama_cpt.model.hf_names import parameters_by_path
from llama_cpt.model.llama import abstract_llama
from llama_cpt.training import array_dict
from llama_cpt.training.checkpoint import open_run


class TrainedWeights:
    """The trained parameters in a run's folder, or in one that ``convert from-hf`` wrote.

    The newest checkpoint that is whole. Raises UserError where there is none, or where it does not
    hold the Llama that it says it holds.
    """

    def __init__(self, folder: str) -> None:
        if not epath.Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder.")
        checkpoints, step = open_run(folder)
        with checkpoints:
            self.about: dict[str, Any] = checkpoints.about(step)
        self.folder, self.step = folder, step
        self._path = checkpoints.folder / str(step)
        try:
            model = self.about["config"]["model"]
        except (KeyError, TypeError):
            raise UserError(f"{self._path}: does not say which model it is.") from None
        self.config = from_dict(ModelConfig, model, f"{self._path}: model")
        abstract = abstract_llama(self.config)
        self._shapes = parameters_by_path(abstract)
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        saved = self._orbax.metadata(self._path).item_metadata.tree
        array_dict.compare(str(self._path), saved["trained"], array_dict.to_dict(abstract))

    def parameter(self, path: str) -> jax.Array:
        """One array, such as ``layers/query``, on this machine's CPU; nothing else is read."""
        like = self._shapes[path].get_value()
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

    def __enter__(self) -> "TrainedWeights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._orbax.close()
