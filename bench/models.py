"""`python -m bench.models`: which causal language models of the installed transformers load and generate here.

Each architecture of its registry that makes text, of text alone or of pictures too (and gets none), is made small and random,
saved by transformers, loaded by the engine and asked for a few tokens, which must be those that transformers' own code
chooses. Each runs in a process of its own, with limits of time and
memory; results go to a file of JSON lines, and what is in it is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto as registry

import workers.model.backend.load  # noqa: F401 - now, for all children
from bench.small_models import VOCABULARY, small_model
from schemas.messages import SamplingParams
from workers.engine.engine import Engine
from workers.llm import LLM
from workers.model.decoder import Decoder
from workers.model.loaders.errors import ModelLoadError

CPU_SECONDS = 60
WALL_SECONDS = 900.0
"""The limit where the machine is busy with other things."""
MEMORY_BYTES = 6 << 30
TOKENS = 16
TOLERANCE = 1e-4
BACKEND = "cannot be served by the transformers backend: "
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
PROMPTS = [[random.Random(size).randrange(3, VOCABULARY) for _ in range(size)] for size in (1, 7, 40)]
TEXT: dict[str, str] = registry.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
ARCHITECTURES: dict[str, str] = {**registry.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **TEXT}
"""By model type: models that make text of text, be it with pictures or without."""
Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.models", description=__doc__)
    parser.add_argument("results", type=Path, help="file of JSON lines, read and added to")
    parser.add_argument("--only", nargs="*", help="model types to run, anew where the file has them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    small_model("LlamaForCausalLM", "llama")  # has what every child would import for itself imported here
    done = {} if options.only else read(options.results)
    for model_type, architecture in ARCHITECTURES.items():
        if model_type in done or (options.only and model_type not in options.only):
            continue
        names = {"model_type": model_type, "architecture": architecture, "pictures": model_type not in TEXT}
        result = {**names, **isolated(architecture, model_type)}
        print(json.dumps(result), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")


def read(path: Path) -> dict[str, Result]:
    """The latest result of each model type."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {result["model_type"]: result for result in map(json.loads, lines)}


def isolated(architecture: str, model_type: str) -> Result:
    """`attempt` in a forked process, which has all imports already."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, architecture, model_type))
    child.start()
    theirs.close()
    try:
        if not ours.poll(WALL_SECONDS):
            return {"road": "none", "reason": f"it takes longer than {WALL_SECONDS:.0f} s"}
        result: Result = ours.recv()
        return result
    except EOFError:
        child.join()
        return {"road": "none", "reason": _ended(child.exitcode)}
    finally:
        child.kill()
        child.join()


def _child(connection: Connection, architecture: str, model_type: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    connection.send(attempt(architecture, model_type))


def _ended(code: int | None) -> str:
    if code == -signal.SIGXCPU:
        return f"it takes longer than {CPU_SECONDS} s of a core"
    return f"its process ends with exit code {code}"


def attempt(architecture: str, model_type: str) -> Result:
    """road: native, backend or none, and why."""
    try:
        model = small_model(architecture, model_type)
    except Exception as error:  # what transformers' code raises where sizes do not fit together
        return {"road": "none", "reason": f"no small model of it could be made: {_line(error)}"}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            llm = LLM(folder, device="cpu", dtype="float32", kv_blocks=64, max_running=4, max_batched_tokens=16)
        except ModelLoadError as error:
            refused = str(error).removeprefix(f"{folder}: ").removeprefix(f"{architecture} {BACKEND}")
            return {"road": "none", "reason": refused}
        except Exception as error:  # a finding, to be written down like any other
            return {"road": "none", "reason": f"loading fails: {_line(error)}"}
        return _compared(model, llm)


def _compared(model: Any, llm: LLM) -> Result:
    assert isinstance(llm.engine, Engine)
    road = "native" if isinstance(llm.engine.runner.model, Decoder) else "backend"
    try:
        outputs = llm.generate(PROMPTS, GREEDY)
        wrong = [len(p) for p, o in zip(PROMPTS, outputs, strict=True) if not same(model, p, o.token_ids)]
    except Exception as error:  # as above
        return {"road": "none", "reason": f"{road}: generating fails: {_line(error)}"}
    if wrong:
        return {"road": "none", "reason": f"{road}: other tokens than transformers' behind {wrong[0]} prompt tokens"}
    return {"road": road}


@torch.inference_mode()
def same(model: Any, prompt: list[int], output: list[int]) -> bool:
    """Whether each token is transformers' own choice after those before it, or as good up to rounding."""
    logits = model(input_ids=torch.tensor([prompt + output])).logits[0].float()[len(prompt) - 1 : -1]
    chosen = logits.gather(-1, torch.tensor(output)[:, None])[:, 0]
    return bool(((logits.amax(-1) - chosen) <= TOLERANCE * logits.abs().amax()).all())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    main()
