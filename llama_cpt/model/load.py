"""Weights from wherever they are: a Hugging Face folder or a run folder."""

from etils import epath
import jax
from jax.sharding import Mesh

from llama_cpt.config import ModelConfig, from_dict
from llama_cpt.model.hf_config import require_equal
from llama_cpt.model.hf_weights import load_hf
from llama_cpt.model.hub import resolve
from llama_cpt.model.llama import Llama
from llama_cpt.sharding import with_shardings
from llama_cpt.training.checkpoint import FOLDER, open_run


def load_parameters(source: str, abstract: Llama, mesh: Mesh) -> Llama:
    """The parameters in ``source``, in the tree of ``abstract`` (its options), on ``mesh``.

    ``source``: a Hugging Face folder, ``gs://`` URL or hub name, or a run's folder. Raises
    UserError where the architectures differ, in constants such as ``rope_theta`` too.
    """
    if not (epath.Path(source) / FOLDER).exists():
        model = load_hf(resolve(source), abstract.config, mesh)
        return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(model))
    checkpoints, step = open_run(source)
    with checkpoints:
        saved = checkpoints.about(step)["config"]["model"]
        require_equal(abstract.config, from_dict(ModelConfig, saved, source), source)
        return checkpoints.restore_trained(step, with_shardings(abstract, mesh))
