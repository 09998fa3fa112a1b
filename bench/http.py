"""`headrace bench http`: a load on any OpenAI-compatible server, from several client processes; one JSON line.

ttft_ms: sending (connecting included) to the first bytes of the answer. itl_ms: between arrivals of the bytes of one
answer. tpot_ms: first to last bytes of an answer, over its tokens less one. Tokens are what the server's usage says;
rates are over the time from the common start to the end of the last answer. The value at quantile q of n sorted values is
that at index floor(q * n). Goodput counts the requests that kept every limit given.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.load import Load, Samples, run_load, to_stderr


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headrace bench http", description=__doc__)
    made.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1; http only")
    made.add_argument("--model", required=True)
    made.add_argument("--requests", type=int, default=512)
    pace = made.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, default=256, help="requests under way at a time")
    pace.add_argument("--rate", type=float, default=0.0, help="requests a second, at random (Poisson), without a limit")
    made.add_argument("--prompt-tokens", type=int, default=512)
    made.add_argument("--output-tokens", type=int, default=256, help="every answer has as many: ignore_eos is sent")
    made.add_argument("--vocab-size", type=int, default=120_000, help="prompts are random token ids below")
    made.add_argument("--chat", action="store_true", help="chat completions, with words in place of token ids")
    made.add_argument("--processes", type=int, default=4, help="client processes")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--timeout", type=float, default=600.0, help="seconds that an answer may take")
    made.add_argument("--key", default="", help="bearer token")
    made.add_argument("--goodput-ttft-ms", type=float, help="limit on the time to the first token")
    made.add_argument("--goodput-tpot-ms", type=float, help="limit on the time per output token")
    made.add_argument("--label", default="", help="repeated in the output")
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    if not options.url.startswith("http://"):
        raise SystemExit("headrace bench http: --url begins with http://; TLS is not measured")
    load = load_of(options)
    samples = run_load(load, to_stderr)
    print(json.dumps(report(load, samples, options)), flush=True)
    if not samples.e2e:
        sys.exit(1)


def load_of(options: argparse.Namespace) -> Load:
    processes = min(options.processes, options.requests, *([] if options.rate else [options.concurrency]))
    return Load(
        url=options.url,
        model=options.model,
        requests=options.requests,
        concurrency=options.concurrency,
        rate=options.rate,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        vocab_size=options.vocab_size,
        chat=options.chat,
        processes=max(1, processes),
        seed=options.seed,
        timeout=options.timeout,
        key=options.key,
    )


def report(load: Load, samples: Samples, options: argparse.Namespace) -> dict[str, Any]:
    """What is printed."""
    return {
        "label": options.label,
        "model": load.model,
        "requests": load.requests,
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "concurrency": None if load.rate else load.concurrency,
        "rate": load.rate or None,
        "processes": load.processes,
        "completed": len(samples.e2e),
        **measures(samples),
        "errors": dict(samples.errors),
        "goodput": goodput(samples, options.goodput_ttft_ms, options.goodput_tpot_ms),
    }


def measures(samples: Samples) -> dict[str, Any]:
    """Rates a second, times in milliseconds."""
    return {
        "seconds": round(samples.seconds, 3),
        "request_s": round(len(samples.e2e) / samples.seconds, 2),
        "output_tok_s": round(samples.tokens / samples.seconds, 1),
        "ttft_ms": quantiles(samples.ttft, 50, 90, 99),
        "itl_ms": quantiles(samples.gaps, 50, 99),
        "tpot_ms": quantiles(samples.tpot, 50, 99),
        "e2e_ms": quantiles(samples.e2e, 50, 99),
    }


def quantiles(seconds: list[float], *percents: int) -> dict[str, float | None]:
    """Milliseconds by name of the quantile; None where there is nothing."""
    ordered = sorted(seconds)
    return {f"p{percent}": _at(ordered, percent) for percent in percents}


def _at(ordered: list[float], percent: int) -> float | None:
    return round(1000 * ordered[min(len(ordered) - 1, percent * len(ordered) // 100)], 3) if ordered else None


def goodput(samples: Samples, ttft_ms: float | None, tpot_ms: float | None) -> dict[str, float] | None:
    """Requests a second that kept both limits, and their share of all; None without limits."""
    if ttft_ms is None and tpot_ms is None:
        return None
    kept = sum(
        (ttft_ms is None or 1000 * ttft <= ttft_ms) and (tpot_ms is None or 1000 * tpot <= tpot_ms)
        for ttft, tpot in zip(samples.ttft, samples.tpot, strict=True)
    )
    total = len(samples.ttft) + samples.errors.total()
    return {"request_s": round(kept / samples.seconds, 2), "share": round(kept / total, 4) if total else 0.0}
