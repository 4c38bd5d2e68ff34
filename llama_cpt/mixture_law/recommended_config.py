"""A recommendation as something that ``train`` takes: a config on a base, or its options."""

import json
import os
from pathlib import Path

from llama_cpt.mixture_law.findings import conclusion
from llama_cpt.mixture_law.law import Law

CONFIG = '''"""{told}
"""

from dataclasses import replace
from pathlib import Path

from llama_cpt.config.loading import load

base = load(str(Path(__file__).parent / {base}))
config = replace(
    base,
    data=replace(base.data, almr={almr}),
    optimizer=replace(base.optimizer, peak_learning_rate={learning_rate}),
)
'''


def as_config(law: Law, base: str, folder: str) -> str:
    """A Python config in ``folder``: that of ``base`` with the recommended ratio and rate."""
    path = os.path.relpath(Path(base).resolve(), Path(folder).resolve())
    told = "\n".join(_told(law)).replace("\\", "/").replace('"""', "'''")
    return CONFIG.format(
        told=told, base=json.dumps(Path(path).as_posix(), ensure_ascii=False), **_values(law)
    )


def as_options(law: Law) -> str:
    """Options of ``train``, beneath what they come from as comments."""
    values = _values(law)
    options = (
        f"--data.almr {values['almr']} --optimizer.peak-learning-rate {values['learning_rate']}"
    )
    return "\n".join([*(f"# {line}".rstrip() for line in _told(law)), options]) + "\n"


def _values(law: Law) -> dict[str, str]:
    """As many digits as the intervals deserve."""
    found = law.recommendation
    assert found, "a refusal has no config"
    return {
        "almr": f"{float(found.almr.value):.3f}",
        "learning_rate": f"{float(found.learning_rate.value):.3g}",
    }


def _told(law: Law) -> list[str]:
    poor = law.recommendation and law.recommendation.poor_fit
    told = ["Ratio and rate as the law beside this file (law.json) recommends them.", "",
            *conclusion(law)]  # fmt: skip
    return [poor, *(line for line in told if poor not in line)] if poor else told
