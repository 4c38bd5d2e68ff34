"""The options of a corpus."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from llama_cpt.config.fields import ConfigSection, option, traits
from llama_cpt.config.stages import Stages, exact_stages


@dataclass(frozen=True)
class CorpusConfig(ConfigSection):
    """A corpus of documents or conversations from one source."""

    name: str
    source: str = field(metadata=traits(on_resume="ignore"))
    """Path or glob (local, ``gs://`` or ``hf://datasets/OWNER/NAME/...``) of JSON Lines, Parquet or
    text files, which can be compressed; or a TFDS dataset as ``tfds:NAME`` or ``tfds:NAME:SPLIT``.
    A path that exists is not treated as a glob."""
    weight: Annotated[
        float | tuple[tuple[int, float], ...], tyro.conf.arg(metavar="WEIGHT|STEP WEIGHT ...")
    ] = 1.0
    """Weight in the group (``additional`` or ``original``): the corpus provides weight / (sum of
    the group's weights) of the group's rows. ``((from_step, weight), ...)`` changes the weight at
    the given steps; with a weight of 0, the corpus provides no rows."""
    text_field: str = "text"
    """Name of the record field that contains the text. Dots separate the names of nested fields:
    ``data.text``. A template forms the text from several fields: ``{title}: {body}``."""
    kind: Literal["auto", "documents", "conversations"] = option(
        "auto", compiled=False, on_resume="ignore"
    )
    """Kind of the records. ``auto`` means conversations if ``data.chat`` is set, else documents.
    If the objective is a preference loss, ``conversations`` means preferences. Corpora of both
    kinds can be mixed with the next-token objective. Held-out corpora contain documents."""

    def weight_stages(self) -> Stages:
        """Return ``((from_step, weight), ...)`` with exact decimal weights; the first step is 0.

        Raises UserError if the steps do not increase or a weight is negative.
        """
        return exact_stages(f"data: weight of corpus {self.name!r}", self.weight)
