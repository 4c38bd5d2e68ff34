"""A warning about documents whose borders are the turn markers of a chat template."""

import logging

from llama_cpt.data.chat.template import find_chat_template
from llama_cpt.data.tokenizer.base import USUAL_EOS, Tokenizer
from llama_cpt.data.tokenizer.document_tokens import document_tokens
from llama_cpt.runtime.errors import UserError

logger = logging.getLogger(__name__)


def warn_of_turn_markers(tokenizer: Tokenizer) -> None:
    """Log a warning if tokens at the borders of documents mark turns in the template."""
    try:
        template = find_chat_template(tokenizer)
        markers = template.turn_markers if template else frozenset()
    except UserError:
        return  # Documents do not need a chat template.
    begin, end = document_tokens(tokenizer, None)
    around = markers & {*begin, end}
    used = [name for name, one in tokenizer.special_tokens.items() if one in around]
    usual = [name for name in USUAL_EOS if tokenizer.special_id(name) is not None]
    # In some models, such as Llama 2, EOS ends both documents and turns.
    if used and usual and tokenizer.special_id(usual[0]) not in around:
        example = ("", usual[0])
        logger.warning(
            f"documents begin or end with {' and '.join(used)}, which mark turns in the chat "
            f"template of {tokenizer.path}; set data.document_tokens to the tokens before "
            f"and after documents in pretraining, such as {example}"
        )
