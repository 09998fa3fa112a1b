"""`headrace bench structured`: outputs that follow JSON Schemas. Are they right, and what do the masks cost?

Needs jsonschema, which the development environment has. The engine runs in this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from statistics import median

import numpy as np

from bench.structured_schemas import SCHEMAS
from schemas.messages import Grammar, SamplingParams
from workers.grammar import Grammars, tokenizer_json
from workers.llm import LLM, Generation

PROMPT = "<|im_start|>user\nGive an example of {name}, as JSON.<|im_end|>\n<|im_start|>assistant\n"
MASK_STEPS = 30


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    llm = LLM(options.model, max_running=options.rows, max_model_len=2048)
    jobs = [(name, seed) for seed in range(options.first_seed, options.first_seed + options.seeds) for name in SCHEMAS]
    prompts = [PROMPT.format(name=name) for name, _ in jobs]
    params = [_params(name, seed, options.max_tokens) for name, seed in jobs]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    verdicts = Counter(_verdict(name, output) for (name, _), output in zip(jobs, outputs, strict=True))
    rate = sum(len(output.token_ids) for output in outputs) / seconds
    grammars = Grammars(tokenizer_json(llm.tokenizer), llm.ready.vocab_size, llm.ready.eos_token_ids)
    generations = {"schemas": len(SCHEMAS), "generations": len(jobs), **verdicts, "tokens_per_second": round(rate, 1)}
    print(json.dumps({**generations, "masks": mask_cost(grammars, options.rows)}))


def mask_cost(grammars: Grammars, rows: int) -> dict[str, float]:
    """Milliseconds a step of `rows` rows, along outputs drawn evenly from what is allowed."""
    values = list(SCHEMAS.values())
    each = [Grammar(kind="json", value=json.dumps(values[row % len(values)])) for row in range(rows)]
    started = time.perf_counter()
    matchers = [grammars.matcher(grammar) for grammar in each]
    compiled = (time.perf_counter() - started) * 1e3
    generator = np.random.default_rng(0)
    bits = np.empty((rows, -(-grammars.vocab_size // 32)), dtype=np.int32)
    fill, take = [], []
    for _ in range(MASK_STEPS):
        started = time.perf_counter()
        for matcher, row in zip(matchers, bits, strict=True):
            matcher.fill(row)
        fill.append((time.perf_counter() - started) * 1e3)
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        tokens = [int(generator.choice(np.flatnonzero(row))) for row in allowed]
        started = time.perf_counter()
        for index, (matcher, token) in enumerate(zip(matchers, tokens, strict=True)):
            if matcher.is_complete:
                matchers[index] = grammars.matcher(each[index])
            else:
                matcher.take([token])
        take.append((time.perf_counter() - started) * 1e3)
    figures = {"compile": compiled, "fill": median(fill), "fill_worst": max(fill), "take": median(take)}
    return {"rows": rows, **{f"{name}_ms": round(value, 3) for name, value in figures.items()}}


def _params(name: str, seed: int, max_tokens: int) -> SamplingParams:
    grammar = Grammar(kind="json", value=json.dumps(SCHEMAS[name]))
    return SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens, grammar=grammar)


def _verdict(name: str, output: Generation) -> str:
    """right; cut: it reached max_tokens; wrong: it ended and does not match."""
    import jsonschema  # type: ignore[import-untyped]  # of the development environment

    if output.finish_reason == "length":
        return "cut"
    checker = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    try:
        return "right" if checker.is_valid(json.loads(output.text)) else "wrong"
    except ValueError:
        return "wrong"


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("headrace bench structured", description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seeds", type=int, default=10, help="generations of each schema")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64, help="requests at once")
    parser.add_argument("--max-tokens", type=int, default=96)
    return parser.parse_args(arguments)
