"""Generation of replay documents in batches, which resumes after an interruption.

A part is the share of one process. The random numbers of a batch depend only on the seed and the
number of the batch, so a batch that is generated again is the same. The manifest of a part records
the settings and the identity of the model; the summary of each shard records the counts and the
digest of its documents.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import json
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
import numpy as np

from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.generate import generate
from llama_cpt.generation.sampling import Sampling
from llama_cpt.replay.shards import COUNTS, REMEDY, Shard, read_shards
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.progress import Progress

FORMAT = 2
MOST_EMPTY = 1000
"""Minimum number of consecutive documents that are all left out before generation ends with an
error."""


@dataclass(frozen=True)
class ReplayOptions:
    """Options of the generated documents."""

    tokens: int
    """Number of tokens to write, over all parts."""
    temperature: float
    top_p: float
    min_tokens: int
    """Shorter documents are left out."""
    max_tokens: int
    """Maximum number of tokens of a document."""
    rows: int
    """Number of documents that are generated at the same time."""
    language: str
    """Documents in other languages are left out; an empty string keeps all."""
    seed: int
    part: int
    """Number of this part, from 0."""
    parts: int


@dataclass(frozen=True)
class Writer:
    """A writer of replay documents."""

    decoder: Decoder
    mesh: Mesh
    tokenizer: Tokenizer
    start_ids: tuple[int, ...]
    """Tokens before each document."""
    prefixes: Sequence[str]
    """Beginnings that the documents continue in turn; empty to start with the first token."""
    in_language: Callable[[str], bool]
    options: ReplayOptions

    def write(self, folder: epath.Path, settings: Mapping[str, Any]) -> Counter[str]:
        """Write batches until the part is complete, and return the counts of the part.

        Resumes if ``folder`` contains shards of this part. ``settings`` must be equal to the
        settings of the existing shards. Raises UserError if they differ, if a shard is damaged, or
        if the filters leave out all documents of many batches.
        """
        options = self.options
        target = -(-options.tokens // options.parts)
        part = f"replay-{options.part:05}-of-{options.parts:05}"
        _check_settings(folder / f"{part}.json", settings)
        shard, total, empty = Shard(), Counter(dict.fromkeys(COUNTS, 0)), 0
        for shard in read_shards(folder, part):
            total.update(shard.counts)
        with Progress("replay", float(target), "tokens") as progress:
            progress.update(float(total["tokens"]))
            while total["tokens"] < target:
                shard = shard.next()
                texts, counts = self._batch(shard.end)
                empty = 0 if texts else empty + options.rows
                if empty >= MOST_EMPTY:
                    raise UserError(
                        f"the last {empty} documents were all left out "
                        f"({_reasons(counts)}); change --language, --min-tokens or --temperature."
                    )
                shard = shard.add(texts, counts)
                if is_primary():
                    shard.save(folder, part)
                total.update(counts)
                progress.update(float(counts["tokens"]))
        return total

    def _batch(self, number: int) -> tuple[list[str], dict[str, int]]:
        """Return the documents of a batch, and counts of tokens, documents and omissions."""
        options = self.options
        place = number * options.parts + options.part
        [seed] = np.random.SeedSequence([options.seed, place]).generate_state(1)
        starts = [self._prefix(place * options.rows + row) for row in range(options.rows)]
        before = [[*self.start_ids, *self.tokenizer.encode(start)] for start in starts]
        longest = max(map(len, before)) - len(self.start_ids)
        written = generate(
            self.decoder,
            before,
            max_new_tokens=max(options.max_tokens - longest, 1),
            stop_ids=self._stop_ids,
            sampling=Sampling(options.temperature, top_p=options.top_p, seed=int(seed)),
            mesh=self.mesh,
        )
        texts, counts = [], dict.fromkeys(COUNTS, 0)
        for ids, new in zip(before, written, strict=True):
            document = ids[len(self.start_ids) :] + new
            # The maximum length can end a document within a character.
            text = self.tokenizer.decode(document).rstrip("\ufffd").strip()
            if len(document) < options.min_tokens or not text:
                counts["short"] += 1
            elif not self.in_language(text):
                counts["other_language"] += 1
            else:
                texts.append(text)
                counts["tokens"] += len(document)
                counts["documents"] += 1
        return texts, counts

    def _prefix(self, number: int) -> str:
        return self.prefixes[number % len(self.prefixes)] if self.prefixes else ""

    @property
    def _stop_ids(self) -> list[int]:
        # Text that contains the name of a special token is not text that the model was trained on.
        return sorted({self.tokenizer.eos_id, *self.tokenizer.special_tokens.values()})


def _check_settings(path: epath.Path, settings: Mapping[str, Any]) -> None:
    """Compare ``settings`` with those in the manifest of a part, or write a new manifest."""
    if not path.exists():
        if is_primary():
            values = {"format": FORMAT, "settings": dict(settings)}
            write_atomic(path, json.dumps(values, indent=1) + "\n")
        return
    manifest = read_json_object(str(path), REMEDY)
    before = manifest.get("settings")
    if manifest.get("format") != FORMAT or not isinstance(before, dict):
        raise UserError(f"{path}: not the manifest of a replay part; {REMEDY}.")
    different = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{path}: was written with other settings ({', '.join(different)}; {key} was "
            f"{before.get(key)!r} and is {settings.get(key)!r} now); {REMEDY}."
        )


def _reasons(counts: Mapping[str, int]) -> str:
    short, other = counts["short"], counts["other_language"]
    return f"{short} too short, {other} in another language in the last batch"


def settings_of(options: ReplayOptions, identity: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Return the settings that determine the documents, for the manifest.

    ``identity`` contains the digests of the weights and of the tokenizer, and the dtype. The number
    of tokens is not a setting, so that more can be written later.
    """
    values = {key: value for key, value in vars(options).items() if key not in ("tokens", "part")}
    return {**identity, **values, **more, "backend": jax.default_backend()}
