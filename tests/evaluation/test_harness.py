"""Scores of the harness adapter, compared with the Hugging Face backend in float32."""

from typing import Any

import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.evaluation.question_rows import (
    MOST_OPTION_TOKENS,
    group_by_prefix,
    make_batches,
    make_rows,
    merge_ungrouped,
)
from llama_cpt.generation.decoder import load_decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.source import open_source
from tests.evaluation.benchmark_files import TEXT, save_model, write_benchmarks

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from llama_cpt.evaluation import harness as harness_model  # noqa: E402
from llama_cpt.evaluation.benchmarks import load_benchmark  # noqa: E402
from llama_cpt.evaluation.harness import HarnessModel  # noqa: E402
from llama_cpt.evaluation.questions import answer_questions, make_questions  # noqa: E402
from llama_cpt.evaluation.scores import read_scores  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness_model, "BATCH_TOKENS", 256)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=192)


@pytest.fixture(scope="module")
def ours(folder):
    config = open_source(folder).architecture
    mesh = make_mesh(MeshConfig(1, 4, 2))
    decoder = load_decoder(folder, config, mesh, "float32")
    return HarnessModel(decoder, load_tokenizer(folder), mesh, None)


@pytest.fixture(scope="module")
def theirs(folder):
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4}
    options["pretrained"] = folder
    return HFLM(**options)


def requests(kind, *arguments):
    return [Instance(kind, {}, one, 0, ("task", n, 1)) for n, one in enumerate(arguments)]


def test_loglikelihoods_equal_the_harness(ours, theirs):
    shots = TEXT + "Question: 1? Answer: A\n\n" * 3
    asked = requests(
        "loglikelihood",
        *((f"{shots}Question: {n}? Answer:", f" {x}") for n in range(6) for x in "ABCD"),
        # Options of several tokens, some with a common beginning; a space moves to the option.
        *(("猫坐在 ", option) for option in ("垫子上", "垫子", "the hat 12", "A")),
        ("", "The cat"),
        # A token contains the end of the context and the beginning of the option.
        ("The ca", "t sat on 12"),
        # The context is truncated on the left, with options of different lengths.
        *((TEXT * 6, option) for option in (" yes", " no it is not")),
    )
    wanted, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
    np.testing.assert_allclose([p for p, _ in found], [p for p, _ in wanted], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_rolling_loglikelihoods_equal_the_harness(ours, theirs):
    asked = requests("loglikelihood_rolling", (TEXT * 9,), ("猫",), (TEXT,))
    wanted, found = theirs.loglikelihood_rolling(asked), ours.loglikelihood_rolling(asked)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * 9, rtol=1e-6)


@pytest.mark.slow
def test_generated_text_equals_the_harness(ours, theirs):
    free = theirs.generate_until(requests("generate_until", (TEXT, {"max_gen_toks": 24})))[0]
    asked = requests(
        "generate_until",
        (TEXT, {"until": [free[5:8]], "max_gen_toks": 24}),
        ("猫", {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": False}),
        (TEXT * 9, {"until": "7", "max_gen_toks": 24}),
    )
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert len(found[0]) <= 5


@pytest.mark.slow
def test_benchmark_scores_equal_the_harness(ours, theirs, tmp_path):
    data = write_benchmarks(tmp_path / "data")
    for name in ("cmmlu", "blimp", "xcopa_zh", "gsm8k"):
        benchmark = load_benchmark(name, data, None)
        for task in benchmark.parts.values():
            # The backend rejects its default of 256 new tokens in a context of 192.
            if task.config.generation_kwargs:
                task.config.generation_kwargs["max_gen_toks"] = 16
        answer_questions(make_questions(benchmark, chat=None, limit=None), ours, tmp_path, {})
        for part, task in benchmark.parts.items():
            task.set_fewshot_seed(1234)
            harness = lm_eval.evaluate(theirs, {"tasks": {name: task}}, bootstrap_iters=0)
            by_filter = {(s["filter"], str(s["doc_id"])): s for s in harness["samples"][name]}
            scores = [s for s in read_scores(str(tmp_path))[name] if s.group == part]
            first = next(iter(by_filter))[0]
            assert len(scores) == 3
            for score in scores:
                metric, _, chosen = score.metric.partition(",")
                sample = by_filter[chosen or first, score.id]
                assert score.score == sample[metric]
                wanted = [answer[0] for answer in sample["resps"]]
                if isinstance(wanted[0], tuple):
                    wanted = pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)
                assert score.detail["answers"] == wanted


def test_base_model_rejects_chat(ours):
    with pytest.raises(UserError, match="no chat template"):
        ours.apply_chat_template([{"role": "user", "content": "a"}])


def test_every_request_is_batched_once_with_its_shared_prefix():
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 9, 200) for _ in range(2)]
    pairs = [
        (
            np.append(shots[n % 2], rng.integers(0, 9, n)).astype(np.int32),
            np.array([x, 1], np.int32),
        )
        for n in range(40)
        for x in range(3)
    ]
    groups = merge_ungrouped(group_by_prefix(make_rows(pairs, 512)))
    assert sorted(group.prefix for group in groups) == [199, 200]
    numbers = []
    for group in groups:
        for rows, size, number in make_batches(group, 256, 4):
            assert len(rows) <= number and number % 4 == 0
            assert all(row.length(group.prefix) <= size for row in rows)
            numbers += [request for row in rows for request, _ in row.options]
    assert sorted(numbers) == list(range(len(pairs)))


def test_rows_are_short_if_all_requests_have_the_same_context():
    """Attention over one row of thousands of options needs gigabytes."""
    context, option = np.array([1], np.int32), np.arange(10, dtype=np.int32)
    rows = make_rows([(context, option)] * 700, 8192)
    assert max(row.length(0) for row in rows) <= 1 + MOST_OPTION_TOKENS
    assert [number for row in rows for number, _ in row.options] == list(range(700))
    # A single option can be as long as the context of the model.
    [row] = make_rows([(context, np.zeros(8192, np.int32))], 8192)
    assert row.length(0) == 8192
