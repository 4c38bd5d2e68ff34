"""Task files of the demo's world: equal requests in package and harness, stated chance."""

import json
import os
from pathlib import Path
import zlib

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: [eval]")

from lm_eval.tasks import TaskManager  # noqa: E402

from examples.bilingual_world.documents import LANGUAGES  # noqa: E402
from examples.bilingual_world.facts import make_world  # noqa: E402
from examples.bilingual_world.quartets import quartet_lines  # noqa: E402
from llama_cpt.evaluation.benchmarks import FOLDER, load_benchmark  # noqa: E402
from llama_cpt.evaluation.questions import answer_questions, make_questions  # noqa: E402
from llama_cpt.evaluation.scores import read_scores  # noqa: E402
from llama_cpt.runtime.errors import UserError  # noqa: E402

NAMES = [f"world_{s}_{c}" for s in ("facts", "arithmetic", "feelings") for c in LANGUAGES]


class Oracle:
    """A model that prefers the right option, or if ``blind`` the option with the longest ending."""

    cut = set()

    def __init__(self, blind):
        self.blind = blind

    def answers(self, kind, requests):
        for number, one in enumerate(requests):
            # The part of the sentence that differs between the four options.
            end = one.args[1][len(os.path.commonprefix(one.doc["sentences"])) :]
            right = len(end) if self.blind else one.idx == one.doc["answer"]
            # A hash of the ending breaks ties between endings of the same length.
            yield number, (float(right) + zlib.crc32(end.encode()) % 997 / 1e6, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for code, language in LANGUAGES.items():
        for subject, lines in quartet_lines(make_world(0), language, 0).items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / f"{code}.{subject}.jsonl").write_text(text, "utf-8")
    return str(folder)


@pytest.mark.parametrize("blind", [False, True])
def test_oracle_is_right_and_blind_model_at_chance(folder, tmp_path, blind):
    for name in NAMES:
        found = make_questions(load_benchmark(name, folder, None), chat=None, limit=None)
        answer_questions(found, Oracle(blind), tmp_path, {})
    for name, scores in read_scores(str(tmp_path)).items():
        assert {score.chance for score in scores} == {0.25}, name
        assert sum(s.score for s in scores) / len(scores) == (0.25 if blind else 1.0), name


def test_world_tasks_need_data():
    with pytest.raises(UserError, match="world_facts_zh needs --data"):
        load_benchmark("world_facts_zh", "", None)


def test_harness_asks_the_same_questions(folder):
    given = {"folder": folder, "pretrained": "a model"}
    manager = TaskManager(include_defaults=False, include_path=str(FOLDER), metadata=given)
    theirs = manager.load(NAMES)["tasks"]
    for name in NAMES:
        (ours,) = load_benchmark(name, folder, None).parts.values()
        asked = []
        for task in (ours, theirs[name]):
            task.build_all_requests(limit=8)
            asked.append([instance.args for instance in task.instances])
        assert asked[0] == asked[1] and len(asked[0]) == 32
        assert {context for context, _ in asked[0]} == {""}
        line = json.loads(
            (Path(folder) / f"{name[-2:]}.{name[6:-3]}.jsonl").read_text().split("\n")[0]
        )
        space = "" if name.endswith("_zh") else " "
        assert asked[0][0][1] == line["text"] + space + line["choices"][0]
