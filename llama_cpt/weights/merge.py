"""A weighted sum of models of one architecture, such as an average or an added chat vector.

The sum is formed one parameter at a time. A parameter is a matrix of all layers, such as
``layers/query``. Two float32 copies of one parameter are in memory: the sum, and the next term.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
import json
import logging
from pathlib import Path
import re
import tempfile

from etils import epath
import jax
import jax.numpy as jnp

from llama_cpt.config.fields import require_above_zero
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.atomic import INCOMPLETE, check_new
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import UnreachableError
from llama_cpt.weights.export import find_origin_or_warn, train_config
from llama_cpt.weights.hf_export import ExportOptions, export_hf
from llama_cpt.weights.model_card import MergedModel, merged_model_card
from llama_cpt.weights.parameter_reader import ParameterReader
from llama_cpt.weights.prompt_files import PromptFiles, hf_prompt_files, run_prompt_files
from llama_cpt.weights.provenance import LICENSE_FILES, Origin, copy_files, find_origin
from llama_cpt.weights.source import HfFolder, RunFolder, open_source

logger = logging.getLogger(__name__)

# The number of digits is limited, so that the exact fractions stay small.
_WEIGHT = re.compile(r"[+-]?(\d{1,20}(\.\d{1,20})?|\.\d{1,20}|\d{1,20}/0*[1-9]\d{0,19})", re.ASCII)


@dataclass(frozen=True)
class Term:
    """A model and its weight in the sum."""

    source: HfFolder | RunFolder
    weight: Fraction

    @property
    def path(self) -> str:
        """The folder, URL or hub name of the model, as the user wrote it."""
        return self.source.path


def parse_terms(texts: Sequence[str]) -> list[Term]:
    """Return the terms of a sum, written as ``MODEL=WEIGHT``; a weight can be a fraction.

    Raises UserError if a term is invalid or if the weights do not sum to exactly 1.
    """
    terms = []
    for text in texts:
        path, _, number = text.rpartition("=")
        if not path or not _WEIGHT.fullmatch(number):
            raise UserError(
                f"{text}: must be MODEL=WEIGHT, for example runs/cpt=0.5 or runs/cpt=1/3."
            )
        terms.append(Term(open_source(path), Fraction(number)))
    total = sum(term.weight for term in terms)
    if total != 1:
        raise UserError(
            f"the weights {', '.join(str(term.weight) for term in terms)} sum to {total}, not to "
            "1. Correct them; write a third as 1/3, and a chat vector as A=1 B=S C=-S."
        )
    return terms


def merge(
    terms: Sequence[Term],
    output: str,
    *,
    dtype: str = "bfloat16",
    shard_gb: float = 5.0,
    tokenizer_source: str | None = None,
) -> None:
    """Write the weighted sum of ``terms`` as the Hugging Face folder ``output``.

    Each product and each partial sum is rounded to float32, in the order of ``terms``; the sum is
    then rounded to ``dtype``. LoRA adapters of a run are merged into its base weights first.
    ``tokenizer_source`` is the path of the model in ``terms`` whose tokenizer, chat template and
    generation settings are written; the default is the first model. ``shard_gb`` is the maximum
    size of a weight file in GB. Raises UserError, before weights are read, if ``output`` exists, or
    if the models differ in their architecture or vocabulary.
    """
    require_above_zero("--shard-gb", shard_gb)
    check_new(output)
    chosen = next((t for t in terms if tokenizer_source in (None, t.path)), None)
    if chosen is None:
        raise UserError(
            f"--tokenizer-source {tokenizer_source}: is not one of the merged models; name one of "
            f"{', '.join(term.path for term in terms)}."
        )
    _require_same(terms)
    origins = [_origin(term.source) for term in terms]
    prompt_files = _prompt_files(chosen.source, origins[terms.index(chosen)])
    with ExitStack() as opened:
        readers = [opened.enter_context(term.source.reader()) for term in terms]
        export = ExportOptions(
            dtype,
            int(shard_gb * 1e9),
            token_ids=prompt_files.token_ids,
            write_others=partial(_write_others, terms, origins, prompt_files),
        )
        weights = [float(term.weight) for term in terms]
        config = readers[0].config
        export_hf(partial(_weighted_sum, weights, readers), config, output, export)
    print(f"{output}: weighted sum of {len(terms)} models in {dtype}")


def _require_same(terms: Sequence[Term]) -> None:
    """Raise UserError if models differ in architecture or vocabulary; name all differences."""
    first, *others = terms
    architecture = first.source.architecture
    errors = []
    for term in terms:
        try:
            term.source.check(architecture)
        except UnreachableError:
            raise
        except UserError as error:
            errors.append(str(error))
    expected = _tokenizer(first.source)
    for term in others if expected else ():
        found = _tokenizer(term.source)
        if expected and found and (difference := _vocabulary_difference(expected, found)):
            errors.append(f"{term.path}: {difference} in {first.path}.")
    if errors:
        raise UserError(f"the models cannot be merged. {' '.join(errors)}")


def _tokenizer(source: HfFolder | RunFolder) -> Tokenizer | None:
    try:
        return load_tokenizer(source.tokenizer)
    except UserError as error:
        logger.warning("the vocabulary of %s is not compared: %s", source.path, error)
        return None


def _vocabulary_difference(expected: Tokenizer, found: Tokenizer) -> str | None:
    """Return a description of how ``found`` differs from ``expected``; None if tokens are equal.

    Names of special tokens can differ, and one tokenizer can have more tokens than the other,
    because an instruction-tuned model can rename reserved tokens of its base model or use rows of
    the embedding that were padding.
    """
    if expected.content_digest == found.content_digest:
        return None
    special = {*expected.special_tokens.values(), *found.special_tokens.values()}
    differing = [
        one
        for one in range(min(expected.vocab_size, found.vocab_size))
        if one not in special and found.decode([one]) != expected.decode([one])
    ]
    if not differing:
        return None
    new, old = (one.decode(differing[:1]) for one in (found, expected))
    return f"{len(differing):,} tokens differ; token {differing[0]} is {new!r}, but {old!r}"


def _origin(source: HfFolder | RunFolder) -> Origin:
    if isinstance(source, RunFolder):
        remedy = "Restore the base model's folder, or add its license to the merged model."
        return find_origin_or_warn(train_config(source), source.path, remedy)
    return find_origin(source.path)


def _prompt_files(source: HfFolder | RunFolder, origin: Origin) -> PromptFiles:
    if isinstance(source, RunFolder):
        return run_prompt_files(source, origin, None)
    return hf_prompt_files(source)


def _weighted_sum(
    weights: Sequence[float], readers: Sequence[ParameterReader], path: str
) -> jax.Array:
    """Return the weighted sum of one parameter in float32; raise UserError if it is not finite."""
    total = _scaled(readers[0].parameter(path), weights[0])
    for weight, reader in zip(weights[1:], readers[1:], strict=True):
        total = jax.block_until_ready(_add_scaled(total, reader.parameter(path), weight))
    if not jnp.isfinite(total).all():
        raise UserError(f"{path}: the sum is not finite; check the models with convert verify.")
    return total


@jax.jit
def _scaled(array: jax.Array, weight: float) -> jax.Array:
    return array * weight


@partial(jax.jit, donate_argnums=0)
def _add_scaled(total: jax.Array, array: jax.Array, weight: float) -> jax.Array:
    return total + array * weight


def _write_others(
    terms: Sequence[Term],
    origins: Sequence[Origin],
    prompt_files: PromptFiles,
    folder: epath.Path,
) -> None:
    """Write the tokenizer, licenses, generation settings and model card into ``folder``."""
    prompt_files.write(folder)
    licenses = _copy_licenses(origins, folder)
    models = [
        MergedModel(
            Path(term.path).name if isinstance(term.source, RunFolder) else origin.base,
            term.weight,
            origin,
            _digests(term.source),
        )
        for term, origin in zip(terms, origins, strict=True)
    ]
    name = folder.name.removesuffix(INCOMPLETE)
    card = merged_model_card(name, models, licenses)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_licenses(origins: Sequence[Origin], folder: epath.Path) -> list[str]:
    """Copy the license files of all models, and return their names.

    The name of a file that differs from an earlier file of the same name gets the number of its
    model, such as ``LICENSE-2.txt``.
    """
    contents: dict[str, bytes] = {}
    for number, origin in enumerate(origins, 1):
        with tempfile.TemporaryDirectory() as temporary:
            copied = epath.Path(temporary)
            names = copy_files(origin.folder, copied, LICENSE_FILES) if origin.folder else []
            for name in names:
                content = (copied / name).read_bytes()
                if content in contents.values():
                    continue
                target = Path(name)
                if name in contents:
                    target = target.with_stem(f"{target.stem}-{number}")
                contents[str(target)] = content
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return list(contents)


def _digests(source: HfFolder | RunFolder) -> list[tuple[str, str]]:
    """Return the name and the SHA-256 of each weight file, or of the manifest of a checkpoint."""
    if isinstance(source, HfFolder):
        return [(name, digest) for name, _, digest in json.loads(source.fingerprint())]
    digests = [(f"manifest of checkpoint {source.step}", source.fingerprint())]
    if source.lora_base:
        base = _digests(open_source(source.lora_base.source))
        digests += [(f"base weights: {name}", digest) for name, digest in base]
    return digests
