"""A lowered program compiled, with the text of what was made."""

from pathlib import Path
import tempfile

import jax

from llama_cpt.planning.out_of_memory import TooLarge, too_large


def compiled_and_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str] | TooLarge:
    """Or what a program asks for that the chip has not.

    The text is the one that the compiler writes itself: ``as_text()`` goes through the reader of
    jaxlib, which (JAX 0.10) refuses programs with several arrays in one asynchronous operation, as
    the steps for v5p are.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_module_re": "jit_"}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            refused = too_large(str(error))
            if refused is None:
                raise
            return refused
        (text,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, text.read_text()
