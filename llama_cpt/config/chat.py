"""The config section for chat data."""

from dataclasses import dataclass
from typing import Literal

from llama_cpt.config.fields import ConfigSection, option, require_share
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class ChatConfig(ConfigSection):
    """Options of the conversion of conversations to token rows."""

    template: Literal["auto", "llama3"] = "auto"
    """``llama3`` is the template of Llama 3. ``auto`` is the ``chat_template`` in the folder of
    the tokenizer, or the template of Llama 3 if the folder contains no template."""
    loss_on: Literal["assistant", "last", "all"] = option("assistant", former_name="learn")
    """Tokens that count in the loss: those of all assistant turns (``assistant``), those of the
    last assistant turn (``last``), or all tokens (``all``). End-of-turn tokens are included."""
    too_long: Literal["drop", "truncate_start", "truncate_end"] = "drop"
    """Treatment of conversations that are longer than a row: drop the conversation, or truncate
    its start or its end."""
    drop_fields: tuple[str, ...] = option((), compiled=False)
    """Names of fields of records and turns that are ignored, such as ``tools``, ``tool_calls`` or
    ``reasoning_content``. Without this option, a record with content in such a field is invalid,
    because the content would be lost. The flags ``weight``, ``train`` and ``loss`` can also be
    named here."""
    max_left_out: float = option(0.5, compiled=False)
    """Maximum share of the records of a corpus that can be left out because they are invalid or do
    not fit in a row, in [0, 1]. If the share is higher, preparation ends with an error. If the
    share is higher than a tenth, preparation logs a warning."""

    def __post_init__(self) -> None:
        """Validate the names of dropped fields and the share of records that can be left out."""
        super().__post_init__()
        require_share(self, "data.chat", "max_left_out")
        for name in self.drop_fields:
            if not name or "," in name:
                raise UserError(
                    f"data.chat.drop_fields={self.drop_fields}: {name!r} is not the name of a "
                    "field; correct it."
                )
