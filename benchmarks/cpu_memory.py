"""Peak memory and speed of training a Hugging Face model on a CPU, compared with a torch loop.

    python -m benchmarks.cpu_memory MODEL [--stage cpt] [--repeats 5]

MODEL is a Hugging Face folder of a Llama model. Both programs load its weights as float32, train on
the same number of tokens per step with AdamW, and save a checkpoint in the middle and at the end.
llama_cpt is the command ``train`` as a user runs it. The other program is a plain loop with
transformers and torch. Each run is a separate process, and the programs take turns. The peak is the
largest resident memory of the process (``ru_maxrss``). The speed is in tokens per second of CPU
time, measured over the steps after the checkpoint in the middle.
"""

import argparse
import json
import os
from pathlib import Path
import re
import statistics
import subprocess
import sys
import tempfile

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import (
    ChatConfig,
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    NextTokenConfig,
    OptimizerConfig,
    PreferenceConfig,
    TrainConfig,
)

PROGRAMS = ("llama_cpt", "torch")
TICKS = os.sysconf("SC_CLK_TCK")
WORDS = "the a river house light stone walks sees under over green quiet seven morning".split()
STEP = re.compile(rb"step +(\d+)/")


def write_corpus(folder: Path, stage: str, rows: int) -> None:
    """Write enough text, or preference pairs, for ``rows`` rows of the largest length."""
    with (folder / "corpus.jsonl").open("w") as out:
        for number in range(4 * rows):
            words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(600)]
            record: dict[str, str] = {"text": " ".join(words)}
            if stage == "dpo":
                half = len(words) // 4
                record = {
                    "prompt": " ".join(words[:20]),
                    "chosen": " ".join(words[20:half]),
                    "rejected": " ".join(words[half : 2 * half - 20]),
                }
            out.write(json.dumps(record) + "\n")


def llama_cpt_command(options: argparse.Namespace, folder: Path) -> list[str]:
    """Write a config into ``folder``, and return the command that trains with it."""
    pairs = options.stage == "dpo"
    corpus = CorpusConfig("text", str(folder / "corpus.jsonl"))
    config = TrainConfig(
        output=str(folder / "run"),
        init_from=options.model,
        data=DataConfig(
            tokenizer=options.model,
            prepared=str(folder / "prepared"),
            sequence_length=options.length,
            almr=0.0,
            original=(corpus,),
            max_epochs=1000,
            chat=ChatConfig(too_long="truncate_end") if pairs else None,
        ),
        optimizer=OptimizerConfig(peak_learning_rate=1e-5),
        num_steps=options.steps,
        global_batch_size=options.rows,
        compute=ComputeConfig(dtype="float32", remat=options.remat),
        checkpoint=CheckpointConfig(every_steps=options.steps // 2),
        evaluation=EvaluationConfig(every_steps=options.steps, early_evaluations=False),
        log_every_steps=1,
        objective=PreferenceConfig(loss="sigmoid") if pairs else NextTokenConfig(),
    )
    save_config(config, folder / "config.json")
    return [sys.executable, "-m", "llama_cpt.train", str(folder / "config.json")]


def torch_loop(options: argparse.Namespace) -> None:
    """Train with transformers and torch. Each pair of answers has ``--length`` tokens."""
    import torch
    from torch.nn.functional import cross_entropy
    import transformers

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    pairs = options.stage == "dpo"
    shape = (2 * options.rows, options.length // 2) if pairs else (options.rows, options.length)
    ids = torch.randint(model.config.vocab_size, (shape[0], shape[1] + 1))

    def logprobs() -> torch.Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        targets = ids[:, 1:]
        return -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    def margins() -> torch.Tensor:
        chosen, rejected = logprobs().reshape(shape).sum(1).chunk(2)
        return chosen - rejected

    with torch.no_grad():
        reference = margins() if pairs else 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    for step in range(1, options.steps + 1):
        optimizer.zero_grad()
        if pairs:
            loss = -torch.nn.functional.logsigmoid(0.1 * (margins() - reference)).mean()
        else:
            loss = -logprobs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step}/{options.steps} loss {float(loss):.4f}", flush=True)
        if step % (options.steps // 2) == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(saved, Path(options.folder) / "checkpoint.pt")


def measure(command: list[str], options: argparse.Namespace) -> tuple[float, float]:
    """Run ``command``, and return its peak memory in GB and its tokens per second of CPU time."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    seconds = {}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if found := STEP.search(line):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds[int(found[1])] = (int(fields[11]) + int(fields[12])) / TICKS
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(b"".join(output).decode(errors="replace"))
    # The first step after a checkpoint can include a part of the save.
    first, last = options.steps // 2 + 1, options.steps
    tokens = (last - first) * options.rows * options.length
    return usage.ru_maxrss * 1024 / 1e9, tokens / (seconds[last] - seconds[first])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="Hugging Face folder of a Llama model")
    parser.add_argument("--stage", choices=("cpt", "dpo"), default="cpt")
    parser.add_argument("--remat", default="minimal", help="compute.remat of llama_cpt")
    for name, value in {"rows": 2, "length": 256, "steps": 8, "repeats": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        torch_loop(options)
        return
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in options.programs}
    for _ in range(options.repeats):
        for name, runs in results.items():
            with tempfile.TemporaryDirectory() as made:
                folder = Path(made)
                write_corpus(folder, options.stage, options.rows)
                command = [sys.executable, "-m", "benchmarks.cpu_memory", *sys.argv[1:]]
                command += ["--folder", made]
                if name == "llama_cpt":
                    command = llama_cpt_command(options, folder)
                runs.append(measure(command, options))
            line = f"{name:>9}: {runs[-1][0]:.2f} GB, {runs[-1][1]:.1f} tokens/s of CPU time"
            print(line, flush=True)
    for name, runs in results.items():
        peaks, speeds = zip(*runs, strict=True)
        print(
            f"{name:>9}: peak {max(peaks):.2f} GB, {statistics.median(speeds):.1f} tokens/s of "
            "CPU time (median)"
        )
    if len(results) == len(PROGRAMS):
        ours, theirs = (results[name] for name in PROGRAMS)
        ratios = [one[1] / other[1] for one, other in zip(ours, theirs, strict=True)]
        memory = max(peak for peak, _ in ours) / max(peak for peak, _ in theirs)
        print(f"    ratio: memory {memory:.2f}, speed {statistics.median(ratios):.2f} (median)")


if __name__ == "__main__":
    main()
