"""The share of a corpus that is left out of its rows, with warnings and errors."""

from collections.abc import Mapping
import logging

from llama_cpt.config.chat import ChatConfig
from llama_cpt.data.rows import Manifest
from llama_cpt.runtime.errors import UserError

logger = logging.getLogger(__name__)

WARNING_SHARE = 0.1
# Counts of ``Manifest.chat_counts`` for examples that are left out -> reason and remedy.
_COUNTS = {
    "too_long": (
        "longer than a row",
        "increase data.sequence_length or set data.chat.too_long=truncate_end",
    ),
    "nothing_to_learn": (
        "without tokens in the loss after truncation",
        "increase data.sequence_length or change data.chat.too_long",
    ),
}
_CORRECT = "correct the source"


def check_left_out(
    rows: Mapping[str, Manifest],
    heldout: Mapping[str, Manifest],
    chat: ChatConfig | None,
    *,
    warn: bool,
) -> None:
    """Raise UserError if more than ``chat.max_left_out`` of a corpus of chats is left out.

    For every corpus of which more than a tenth is left out, logs a warning if ``warn`` is True.
    """
    errors = []
    for group, manifests in (("", rows), ("held-out ", heldout)):
        for manifest in manifests.values():
            share, message = _left_out(manifest)
            message = f"{group}corpus {manifest.corpus!r}: {message}"
            if chat and manifest.chat and share > chat.max_left_out:
                errors.append(
                    f"{message}, or set data.chat.max_left_out above {chat.max_left_out:g}."
                )
            elif warn and share > WARNING_SHARE:
                logger.warning(f"{message}.")
            elif warn and _truncated_share(manifest) > WARNING_SHARE:
                logger.warning(_truncated(manifest))
    if errors:
        raise UserError(" ".join(errors))


def _left_out(manifest: Manifest) -> tuple[float, str]:
    """Return the share of the records that are left out, and a message with counts by reason."""
    lost = {reason: count for reason, count in manifest.skipped.items() if count}
    remedies = [_CORRECT] * bool(lost)
    total = manifest.documents + sum(lost.values())
    if manifest.chat:
        counts = manifest.chat_counts
        # A preference pair is two examples for KTO. Earlier versions did not count examples.
        total = (counts.get("examples") or manifest.documents) + sum(lost.values())
        for name, (reason, remedy) in _COUNTS.items():
            if counts.get(name):
                lost[reason] = counts[name]
                remedies.append(remedy)
    left_out = sum(lost.values())
    share = left_out / max(total, 1)
    reasons = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(lost.items(), key=lambda one: -one[1])
    )
    return share, (
        f"{left_out:,} of {total:,} records ({share:.0%}) are left out: {reasons}; "
        f"{', and '.join(dict.fromkeys(remedies))}"
    )


def _truncated_share(manifest: Manifest) -> float:
    """Return the share of the tokens of a corpus of chats that is not in a row."""
    return manifest.dropped_tokens / max(manifest.tokens, 1) if manifest.chat else 0.0


def _truncated(manifest: Manifest) -> str:
    counts = manifest.chat_counts
    return (
        f"corpus {manifest.corpus!r}: {manifest.dropped_tokens:,} of {manifest.tokens:,} tokens "
        f"({_truncated_share(manifest):.0%}) are left out, because {counts.get('truncated', 0):,} "
        f"records were truncated and {counts.get('too_long', 0):,} dropped; increase "
        "data.sequence_length."
    )
