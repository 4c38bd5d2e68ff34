"""Weights from wherever they are: a Hugging Face folder or a run folder."""

from etils import epath
import jax
from jax.sharding import Mesh

from llama_cpt.model.hf_weights import load_hf
from llama_cpt.model.hub import resolve
from llama_cpt.model.llama import Llama
from llama_cpt.sharding import with_shardings
from llama_cpt.training.checkpoint import FOLDER, load_trained


def load_parameters(source: str, abstract: Llama, mesh: Mesh) -> Llama:
    """The parameters in ``source``, in the tree of ``abstract`` (its options), on ``mesh``.

    ``source``: a Hugging Face folder, ``gs://`` URL or hub name, or a run's folder. Raises
    UserError where the architectures differ.
    """
    place = epath.Path(source)
    if (place / FOLDER).exists():
        return load_trained(source, with_shardings(abstract, mesh))
    model = load_hf(resolve(source), abstract.config, mesh)
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(model))
