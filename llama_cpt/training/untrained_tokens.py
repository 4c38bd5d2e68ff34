"""A warning about tokens of a chat template that the initial model was not trained on.

The vocabulary of a base model can contain tokens that occur only in the chats of the
instruction-tuned model. Without training examples, weight decay moves their embeddings toward 0,
and the output matrix moves all of them in the same direction. An example is the base model of
Llama 3 (https://github.com/meta-pytorch/torchtune/issues/2429).
"""

import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import constrain
from llama_cpt.runtime.distributed import is_primary

logger = logging.getLogger(__name__)

MAX_SHARE = 0.05
"""Share of the median norm of all rows. A row is untrained if its norm, or its distance to another
row, is below this share. In SmolLM2-135M-Instruct, the share is 0.0004 for reserved tokens, 0.12
for ``<|im_start|>``, and at least 0.39 for 99 % of all tokens."""


def untrained_tokens(model: Llama, ids: list[int]) -> list[int]:
    """Return the tokens in ``ids`` whose row of the embedding or output matrix is untrained.

    A row is untrained if it is nearly 0 or nearly equal to another row (``MAX_SHARE``).
    """
    matrices = [one[...] for one in (model.embedding, model.lm_head) if one is not None]
    rows = jnp.asarray(ids, jnp.int32)
    shares = [np.asarray(_smallest_share(matrix, rows)) for matrix in matrices]
    smallest = np.min(shares, axis=0)
    return [one for one, share in zip(ids, smallest, strict=True) if share < MAX_SHARE]


@jax.jit
def _smallest_share(
    matrix: Float[Array, "vocab embed"], ids: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """Return the norm of each row in ``ids``, or its distance to the nearest row if it is smaller.

    The unit is the median norm of all rows.
    """
    matrix = matrix.astype(jnp.float32)
    squares = jnp.sum(matrix * matrix, axis=1)
    products = jnp.matmul(matrix[ids], matrix.T, precision=jax.lax.Precision.HIGHEST)
    distances = squares[ids][:, None] + squares[None] - 2 * products
    is_self = ids[:, None] == jnp.arange(matrix.shape[0])[None]
    nearest = jnp.min(jnp.where(is_self, jnp.inf, distances), axis=1)
    smallest = jnp.maximum(jnp.minimum(squares[ids], nearest), 0)
    return constrain(jnp.sqrt(smallest) / jnp.median(jnp.sqrt(squares)), None)


def warn_of_untrained_tokens(
    model: Llama, template: ChatTemplate, tokenizer: Tokenizer, *, lora: bool
) -> None:
    """Log a warning that names the untrained tokens that ``template`` writes in every turn.

    ``lora`` is True if the run does not train the embedding and the output matrix.
    """
    found = untrained_tokens(model, sorted(template.turn_markers))
    if not found or not is_primary():
        return
    names = ", ".join(tokenizer.decode([one]) for one in found)
    remedy = (
        "LoRA does not train them; train all weights, start from the instruction-tuned model, "
        if lora
        else "Train on enough chats, start from the instruction-tuned model, "
    )
    logger.warning(
        "the chat template writes %s, and the initial model is untrained on these tokens: their "
        "rows of the embedding or output matrix are nearly 0 or equal to other rows. %sor add a "
        "chat vector first (docs/guide/base_or_instruct.md).",
        names,
        remedy,
    )
