"""The changes of a config that are permitted, need --allow-change, or are refused on resume."""

from dataclasses import replace
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from llama_cpt.config.fields import to_dict
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import (
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.data.mixture import build_mixture
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.resume import check_fingerprints, check_resume

CONFIG = TrainConfig(
    output="runs/a",
    model=ModelConfig(64, 32, 64, 2, 4, 2, 8, 1e4, None, 1e-5, False, 128),
    data=DataConfig(
        tokenizer="t.model",
        prepared="rows",
        sequence_length=128,
        almr=0.33,
        additional=(CorpusConfig("zh", "zh.jsonl"),),
        original=(CorpusConfig("en", "en.jsonl"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3),
    num_steps=100,
    global_batch_size=8,
)
SAVED = json.loads(json.dumps(to_dict(CONFIG)))


def with_model(**changes):
    return replace(CONFIG, model=replace(CONFIG.architecture, **changes))


def with_data(**changes):
    return replace(CONFIG, data=replace(CONFIG.data, **changes))


def test_equal_configs_give_no_warning():
    assert check_resume(SAVED, CONFIG, steps_done=100) == []


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        (replace(CONFIG, mesh=MeshConfig(1, 4, 2)), {"mesh.fsdp", "mesh.tensor"}),
        (replace(CONFIG, log_every_steps=1), {"log_every_steps"}),
        (replace(CONFIG, evaluation=EvaluationConfig(every_steps=7)), {"evaluation.every_steps"}),
        (replace(CONFIG, checkpoint=CheckpointConfig(keep=9)), {"checkpoint.keep"}),
        (
            replace(CONFIG, compute=ComputeConfig(remat="none", attention="splash")),
            {"compute.remat", "compute.attention"},
        ),
        (replace(CONFIG, num_steps=200), {"num_steps"}),
    ],
)
def test_allowed_change_is_a_warning_with_both_values(changed, fields):
    warnings = check_resume(SAVED, changed)
    assert {warning.split(" was ")[0] for warning in warnings} == fields


def test_longer_run_warns_of_the_schedule():
    (warning,) = check_resume(SAVED, replace(CONFIG, num_steps=200))
    assert "num_steps was 100, is 200" in warning and "cosine" in warning
    constant = replace(CONFIG, optimizer=replace(CONFIG.optimizer, schedule="constant"))
    (warning,) = check_resume(to_dict(constant), replace(constant, num_steps=200))
    assert warning == "num_steps was 100, is 200"


@pytest.mark.parametrize(
    "changed",
    [
        replace(CONFIG, output="elsewhere"),
        with_data(prepared="elsewhere", tokenizer="copy/t.model"),
        with_data(additional=(CorpusConfig("zh", "moved/zh.jsonl"),)),
    ],
)
def test_paths_may_differ_without_a_warning(changed):
    assert check_resume(SAVED, changed) == []


@pytest.mark.parametrize(
    ("changed", "field", "old", "new"),
    [
        (replace(CONFIG, seed=1), "seed", "0", "1"),
        (replace(CONFIG, global_batch_size=16), "global_batch_size", "8", "16"),
        (replace(CONFIG, microbatch_size=4), "microbatch_size", "0", "4"),
        (replace(CONFIG, num_steps=50), "num_steps", "100", "50"),
        (
            with_model(norm_eps=1e-6),
            "model.norm_eps",
            "1e",
            "1e",
        ),
        (replace(CONFIG, compute=ComputeConfig("float32")), "compute.dtype", "bfloat16", "float32"),
        (with_data(almr=0.5), "data.almr", "0.33", "0.5"),
        (
            with_data(almr=((0, 0.33), (9, 1.0))),
            "data.almr",
            "0.33",
            r"\[\[0, 0.33\], \[9, 1.0\]\]",
        ),
        (
            with_data(original=(CorpusConfig("en", "en.jsonl", weight=2.0),)),
            "data.original.0.weight",
            "1.0",
            "2.0",
        ),
        (
            replace(CONFIG, optimizer=OptimizerConfig(2e-3)),
            "optimizer.peak_learning_rate",
            "0.001",
            "0.002",
        ),
    ],
)
def test_other_changes_need_a_flag(changed, field, old, new):
    name = field.replace("[", r"\[").replace("]", r"\]")
    flag = f"--allow-change '{name}'" if "[" in name else f"--allow-change {name}"
    with pytest.raises(UserError, match=f"{name} was {old}.*, is {new}.*{flag}"):
        check_resume(SAVED, changed)
    assert len(check_resume(SAVED, changed, [field])) == 1
    section = field.split(".")[0]
    assert check_resume(SAVED, changed, [section]) == check_resume(SAVED, changed, [field])


def test_all_rejected_fields_are_named_at_once():
    flags = "--allow-change global_batch_size --allow-change seed"
    with pytest.raises(UserError, match=flags):
        check_resume(SAVED, replace(CONFIG, seed=1, global_batch_size=16))


def test_flag_for_an_unknown_field_is_rejected():
    with pytest.raises(UserError, match="--allow-change optimizr: the config has no such"):
        check_resume(SAVED, CONFIG, ["optimizr"])


def test_fewer_steps_than_done_are_rejected():
    with pytest.raises(UserError, match="num_steps=50, but 60 steps are done"):
        check_resume(SAVED, replace(CONFIG, num_steps=50), ["num_steps"], steps_done=60)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(CONFIG, init_from="other"), "init_from was '', is other, and cannot change"),
        (
            with_model(mlp_dim=128),
            "model.mlp_dim was 64, is 128",
        ),
    ],
)
def test_some_changes_are_rejected_with_any_flag(changed, message):
    with pytest.raises(UserError, match=message) as caught:
        check_resume(SAVED, changed, ["model"])
    assert "--allow-change" not in str(caught.value)


def test_batch_size_cannot_change_after_a_step():
    with pytest.raises(UserError, match="global_batch_size was 8, is 16.*--init-from runs/a"):
        check_resume(
            SAVED, replace(CONFIG, global_batch_size=16), ["global_batch_size"], steps_done=1
        )


def test_ratio_of_past_steps_cannot_change():
    allow = {"allow": ["data.almr"], "steps_done": 60}
    with pytest.raises(UserError, match=r"add the new one: \(\(0, 0.33\), \(60, ...\)\)"):
        check_resume(SAVED, with_data(almr=0.5), **allow)
    later = with_data(almr=((0, 0.33), (60, 0.5)))
    assert len(check_resume(SAVED, later, **allow)) == 1
    staged = to_dict(later)
    assert check_resume(staged, later, steps_done=90) == []
    with pytest.raises(UserError, match=r"\(0, 0.33\), \(60, 0.5\), \(90, ...\)"):
        check_resume(staged, CONFIG, ["data.almr"], steps_done=90)


def test_weight_of_past_steps_cannot_change():
    def with_weight(weight):
        return with_data(original=(replace(CONFIG.data.original[0], weight=weight),))

    allow = {"allow": ["data.original.0.weight"], "steps_done": 60}
    with pytest.raises(
        UserError, match=r"\(\(0, 1\), \(60, ...\)\), and pass --allow-change data.original.0"
    ):
        check_resume(SAVED, with_weight(0.5), **allow)
    later = with_weight(((0, 1.0), (60, 0.5)))
    assert len(check_resume(SAVED, later, **allow)) == 1
    with pytest.raises(UserError, match=r"weight was 1.0, is \[\[0, 1.0\], \[60, 0.5\]\]"):
        check_resume(SAVED, later, steps_done=60)
    with pytest.raises(UserError, match=r"\(0, 1\), \(60, 0.5\), \(90, ...\)"):
        check_resume(to_dict(later), CONFIG, ["data.original.0.weight"], steps_done=90)


def with_weights(weights):
    """Return CONFIG with the additional corpora ``weights``, a dict from name to weight."""
    corpora = (CorpusConfig(name, f"{name}.jsonl", weight) for name, weight in weights.items())
    return with_data(additional=tuple(corpora))


def rows_of(config, steps):
    """Return the corpus and the row of this corpus of each row in the first ``steps`` steps."""
    corpora = config.data.additional + config.data.original
    sizes = {corpus.name: 50 for corpus in corpora}
    mixture = build_mixture(config.data, sizes, seed=0, global_batch_size=config.global_batch_size)
    corpus, row = mixture.locate(np.arange(steps * config.global_batch_size))
    return [(corpora[c].name, int(r)) for c, r in zip(corpus, row, strict=True)]


TWO = {"zh": 2.0, "ja": 1.0}
LATER = ((0, 0.0), (60, 1.0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"ja": 1.0, "zh": 2.0},
            "data.additional: the order of the corpora was zh, ja, is ja, zh, and determines the "
            "rows of the 60 steps that are done. Restore the order",
        ),
        (
            {"ko": 3.0, **TWO},
            "data.additional.0: corpus 'ko' is new, but its weight is above 0 in the 60 steps "
            "that are done. Set its weight to ((0, 0), (60, 3)), and pass --allow-change data;",
        ),
        (
            {"ko": ((0, 0.0), (40, 1.0)), **TWO},
            "'ko' is new, but its weight is above 0 in the 60 steps",
        ),
        (
            {"ja": 1.0},
            "data.additional: corpus 'zh' was removed, but the 60 steps that are done used it. "
            "Keep it with weight ((0, 2), (60, 0)), and pass",
        ),
        ({"zh": 1.0, "ja": 2.0}, "data.additional.0.weight was 2.0, is 1.0, but 60 steps"),
        # The first corpus is new, so that the index of the second one changes.
        ({"ko": LATER, "zh": 1.0, "ja": 1.0}, "data.additional.1.weight was 2.0, is 1.0"),
        ({"ko": LATER, **TWO}, None),
        ({"zh": 2.0, "ko": LATER, "ja": ((0, 1.0), (60, 0.0))}, None),
        ({"zh": ((0, 2.0), (60, 0.0)), "ja": 1.0}, None),
    ],
)
def test_rows_of_past_steps_stay_equal_or_the_corpus_is_named(weights, message):
    saved, changed = with_weights(TWO), with_weights(weights)
    assert (rows_of(changed, 60) == rows_of(saved, 60)) == (message is None)
    if message is None:
        assert check_resume(to_dict(saved), changed, ["data"], steps_done=60)
        return
    with pytest.raises(UserError) as caught:
        check_resume(to_dict(saved), changed, ["data"], steps_done=60)
    assert message in str(caught.value)
    assert check_resume(to_dict(saved), changed, ["data"], steps_done=0)


def test_corpus_without_past_rows_may_move():
    unused = ((0, 0.0), (90, 1.0))
    saved, moved = with_weights({"ko": unused, **TWO}), with_weights({**TWO, "ko": unused})
    assert rows_of(saved, 60) == rows_of(moved, 60)
    assert check_resume(to_dict(saved), moved, ["data"], steps_done=60)
    assert check_resume(to_dict(saved), with_weights(TWO), ["data"], steps_done=60)


STAGED = st.sampled_from([1.0, 2.0, ((0, 0.0), (3, 1.0)), ((0, 1.0), (5, 0.0)), ((0, 1.0), (5, 2))])
GROUPS = st.permutations(["zh", "ja", "ko"]).flatmap(
    lambda names: st.integers(1, 3).flatmap(
        lambda count: st.fixed_dictionaries({name: STAGED for name in names[:count]})
    )
)


@settings(max_examples=20, deadline=None)
@given(GROUPS, GROUPS)
def test_accepted_corpora_select_the_same_past_rows(before, now):
    try:
        saved, changed = with_weights(before), with_weights(now)
        check_resume(to_dict(saved), changed, ["data"], steps_done=5)
    except UserError:
        return
    assert rows_of(saved, 5) == rows_of(changed, 5)


def test_kind_may_be_stated_on_resume():
    """The fingerprints of the rows show whether the kind of the records has changed."""
    stated = with_data(original=(replace(CONFIG.data.original[0], kind="documents"),))
    assert check_resume(SAVED, stated, steps_done=60) == []


def test_corpus_may_be_dropped_with_a_flag():
    both = with_data(additional=(*CONFIG.data.additional, CorpusConfig("ja", "ja.jsonl")))
    assert check_resume(to_dict(both), CONFIG, ["data.additional.1"])


def test_corpus_may_be_added_with_a_flag():
    more = with_data(additional=(*CONFIG.data.additional, CorpusConfig("ja", "ja.jsonl")))
    with pytest.raises(UserError, match=r"data.additional.1.name was absent, is ja"):
        check_resume(SAVED, more)
    assert check_resume(SAVED, more, ["data.additional"])


def test_missing_saved_fields_mean_defaults():
    older = json.loads(json.dumps(SAVED))
    del older["checkpoint"], older["data"]["max_epochs"]
    assert check_resume(older, CONFIG) == []


def test_changed_corpora_and_tokenizer_are_named():
    saved = {"data": {"zh": "b", "en": "c"}, "heldout": {"zh": "h"}}
    check_fingerprints(saved, json.loads(json.dumps(saved)))
    with pytest.raises(UserError, match="has changed: data.zh. Restore.*--allow-change data\\.$"):
        check_fingerprints(saved, saved | {"data": {"zh": "x", "en": "c"}})
    with pytest.raises(UserError, match="changed: data.en, data.ja, heldout.zh"):
        check_fingerprints(saved, {"data": {"zh": "b", "ja": "d"}, "heldout": {}})
    check_fingerprints(saved, {"data": {}, "heldout": {}}, ["data"])
    with pytest.raises(UserError, match="--allow-change data.heldout\\.$"):
        check_fingerprints(saved, saved | {"heldout": {}})
    check_fingerprints(saved, saved | {"heldout": {}}, ["data.heldout"])
