"""Conversion of manifests of version 1, whose rows are valid if the tokens have not changed."""

from dataclasses import replace
import logging

from etils import epath
import numpy as np

from llama_cpt.data.prepare.layout import PrepareSpec
from llama_cpt.data.rows import TOKEN, VERSION, HeldoutDocuments, Manifest, Records, write_manifest
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens
from llama_cpt.runtime.errors import UserError

logger = logging.getLogger(__name__)

# Number of rows in which the end of a document is searched.
SEARCHED_ROWS = 64


def accept_former(
    folder: epath.Path, found: Manifest, spec: PrepareSpec, tokenizer: Tokenizer
) -> Manifest:
    """Convert the manifest ``found`` of version 1, write the new manifest, and return it.

    Version 1 identified a tokenizer by its vocabulary file, and wrote BOS before and EOS after each
    document. If ``found`` belongs to a different vocabulary file, or contains records of another
    kind than ``spec``, it is returned unchanged. Raises UserError if this version would write
    different tokens.
    """
    if found.tokenizer != tokenizer.content_digest or bool(found.chat) != bool(spec.chat):
        return found
    problem = ""
    if tokenizer.has_added_text:
        problem = "did not encode text with the tokenizer's added tokens"
    elif found.chat and (tokenizer.adds_space or tokenizer.strips_left | tokenizer.strips_right):
        problem = "encoded other spaces at the borders of turns"
    elif spec.document_tokens and _tokens_around(folder, found) != spec.document_tokens:
        problem = "wrote different tokens before and after each document"
    if problem:
        raise UserError(
            f"{folder} was prepared by an earlier version, which {problem}. Set data.prepared to a "
            f"new folder, or delete {folder} to prepare the corpus again; or set "
            "data.document_tokens to the names of the tokens in the old rows."
        )
    accepted = replace(
        found,
        version=VERSION,
        tokenizer=spec.tokenizer,
        former_tokenizer=found.tokenizer,
        document_tokens=spec.document_tokens,
    )
    if found.chat:
        logger.warning(
            f"{folder} was prepared by an earlier version, which ignored the fields weight, train "
            "and loss of turns, and fields such as tools. If the records contain such fields, set "
            "data.prepared to a new folder to prepare the corpus again."
        )
    write_manifest(str(folder), accepted)
    return accepted


def _tokens_around(folder: epath.Path, manifest: Manifest) -> DocumentTokens | None:
    """Return the tokens before and after the documents in ``folder``.

    Returns None if no end of a document is found, or if the two tokens are equal, because the
    positions of documents are then unknown.
    """
    if not manifest.sequence_length:
        tokens, _ = HeldoutDocuments(str(folder)).read(np.zeros(1, np.int64))[0]
        return DocumentTokens((int(tokens[0]),), int(tokens[-1]))
    records = Records(str(folder), manifest.shards)
    count = min(len(records), SEARCHED_ROWS)
    rows = np.frombuffer(b"".join(records.read(np.arange(count))), TOKEN)
    begin = int(rows[0])
    starts = np.flatnonzero(rows == begin)
    # The token before a document that begins a row can be in a different shard.
    ends = np.unique(rows[starts[starts % (manifest.sequence_length + 1) > 0] - 1])
    if len(ends) != 1 or int(ends[0]) == begin:
        return None
    return DocumentTokens((begin,), int(ends[0]))
