"""The API server under load: against its own engine driven directly, and against vLLM's server.

A random Llama of a few million parameters with a byte-level tokenizer (``answering.py``); REQUESTS
streaming completions of TOKENS tokens, CONCURRENCY at a time, a different prompt each. First our
server with the `transformers` engine and that engine in a process without a server, in turn, ROUNDS
times; then our server with the `vllm` engine and vLLM's own OpenAI server, likewise. A ratio
is the median of the rounds' ratios. Every answer is held against what transformers' plain
`generate` makes of its prompt; where it differs, against the model's scores, since another
engine's kernels round otherwise. Memory is that of the server's processes after each round; not of
vLLM's engine process, which touches its fixed space for keys and values little by little.
The last line is one JSON object: answers lost, answers that are another prompt's or wrong,
the two ratios, and how much the server grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from answering import CONTEXT, expected, prompts, rounding_apart, save_model

OVER_ENGINE, OVER_VLLM, GROWTH = 0.9, 0.95, 0.05
"""Limits: at least, at least, at most (from the first round to the last)."""
ENGINES = {
    "transformers": "easyllm.inference.engines.Transformers",
    "vllm": "easyllm.inference.engines.VLLM",
}
CACHE_GB = 8
"""For keys and values on a GPU, of which two servers at a time would else want all."""
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",  # the other core is the server's
    # else malloc gives memory back after each operation, in one process more than in another:
    # of two that do the same one may be a tenth slower
    "MALLOC_MMAP_THRESHOLD_": "100000000",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    ),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


async def load(url: str, model: str, texts: list[str], tokens: int, concurrency: int) -> Any:
    """Seconds, and the bytes of each answer's stream, or None where it was lost."""
    import aiohttp

    bodies: list[bytes | None] = [None] * len(texts)
    rest = iter(enumerate(texts))

    async def client(session: Any) -> None:
        for number, text in rest:
            asked = {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0,
                     "ignore_eos": True, "stream": True}  # fmt: skip
            try:
                async with session.post(f"{url}/v1/completions", json=asked) as response:
                    body = await response.read()
                    if response.status == 200:
                        bodies[number] = body
            except aiohttp.ClientError:
                pass

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:
        begin = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
        return time.perf_counter() - begin, bodies


def text_of(body: bytes) -> str | None:
    """The text of a stream; None where it is not whole."""
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    if not events or events[-1] != b"[DONE]":
        return None
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["text"] for choice in choices)


def direct(asked: argparse.Namespace) -> None:
    """Drive the engine without a server: a round for each line of the standard input."""
    from easyllm.components import resolver
    from easyllm.spec.inference import SamplingSpec
    from easyllm.spec.schema import read

    cache = {"kv_cache_gb": CACHE_GB} if asked.device == "cuda" else {}
    run, problems = read(
        {"model": {"dtype": "float32"}, "hardware": {"device": asked.device},
         "inference": {"batch_size": asked.concurrency,
                       "engine": {"_target_": ENGINES["transformers"], **cache}}},
        resolver(),
    )  # fmt: skip
    assert not problems
    engine = run.inference.engine.load(Path(asked.direct), run)
    texts = prompts(asked.requests)
    sampling = SamplingSpec(max_tokens=asked.tokens, ignore_eos=True)

    async def round_() -> int:
        rest = iter(texts)
        tokens = 0

        async def client() -> None:
            nonlocal tokens
            for text in rest:
                ids = engine.tokenizer(text)["input_ids"]
                async for step in engine.generate(ids, sampling):
                    tokens += len(step.tokens)

        await asyncio.gather(*(client() for _ in range(asked.concurrency)))
        return tokens

    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        tokens = asyncio.run(round_())
        print(tokens / (time.perf_counter() - begin), flush=True)
    engine.close()


class Server:
    """A server in processes of its own."""

    def __init__(self, name: str, command: list[str], port: int, log: Path):
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=ENVIRONMENT, start_new_session=True,
                cwd=log.parent,
            )  # fmt: skip

    def wait(self, path: str) -> None:
        for _ in range(3000):
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} has ended:\n{self.log.read_text()[-3000:]}")
            try:
                urllib.request.urlopen(self.url + path, timeout=5)
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit(f"{self.name} does not answer")

    def megabytes(self) -> float:
        import psutil

        whole = psutil.Process(self.process.pid)
        own = [p for p in [whole, *whole.children(recursive=True)]
               if "EngineCore" not in " ".join(p.cmdline())]  # fmt: skip
        return sum(process.memory_info().rss for process in own) / 1e6


@contextmanager
def serving(name: str, command: list[str], port: int, folder: Path) -> Iterator[Server]:
    server = Server(name, command, port, folder / f"{name}.log")
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def easyllm(
    model: Path, engine: str, port: int, concurrency: int, device: str = "cpu"
) -> list[str]:
    extra = [f"+inference.engine.kv_cache_gb={CACHE_GB}"] if device == "cuda" else []
    if engine == "vllm":
        extra = [
            f"+inference.engine.max_model_len={CONTEXT}",
            "+inference.engine.enforce_eager=true",
        ]
    return [
        sys.executable, "-m", "easyllm", "stages=[serve]", f"inference.model={model}",
        f"hardware.device={device}", "model.dtype=float32", f"serving.port={port}",
        "serving.model_name=tiny",
        f"inference.engine._target_={ENGINES[engine]}", f"inference.batch_size={concurrency}",
        f"run_dir={model.parent}/{engine}", *extra,
    ]  # fmt: skip


def vllm(model: Path, port: int, concurrency: int) -> list[str]:
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1",
        "--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(concurrency),
        "--enforce-eager", "--generation-config", "vllm", "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip


class Bench:
    def __init__(self, asked: argparse.Namespace, folder: Path):
        self.asked, self.folder, self.model = asked, folder, folder / "model"
        self.texts = prompts(asked.requests)
        save_model(self.model, asked.hidden, asked.layers)
        self.wanted = expected(self.model, self.texts, asked.tokens)
        assert len(set(self.wanted)) > 0.9 * len(self.wanted), "answers hardly differ"
        self.lost = self.mixed = self.rounded = 0
        self.growth: list[float] = []

    def round(self, server: Server, ours: bool = True) -> float:
        """Tokens a second of one round; of our answers counts what was lost or mixed up."""
        seconds, bodies = asyncio.run(
            load(server.url, "tiny", self.texts, self.asked.tokens, self.asked.concurrency)
        )
        if ours:
            self.check([None if body is None else text_of(body) for body in bodies])
        return len(self.texts) * self.asked.tokens / seconds

    def check(self, answers: list[str | None]) -> None:
        differ = []
        for prompt, text, wanted in zip(self.texts, answers, self.wanted, strict=True):
            if text is None or len(text) != self.asked.tokens:
                self.lost += 1
            elif text != wanted:
                differ.append((prompt, text))
        near = rounding_apart(self.model, differ) if differ else []
        self.rounded += sum(near)
        self.mixed += len(near) - sum(near)

    def compare(self, ours: Server, name: str, theirs: Any) -> float:
        """The median ratio of our tokens a second to theirs."""
        ratios, memory = [], []
        for number in range(self.asked.rounds):
            pair = (
                [self.round(ours), theirs()] if number % 2 else [theirs(), self.round(ours)][::-1]
            )
            ratios.append(pair[0] / pair[1])
            memory.append(ours.megabytes())
            print(f"{ours.name:24} {pair[0]:8,.0f} tok/s   {name:24} {pair[1]:8,.0f} tok/s   "
                  f"{ratios[-1]:.3f}   {memory[-1]:,.0f} MB", flush=True)  # fmt: skip
        self.growth.append(memory[-1] / memory[0] - 1)
        return round(statistics.median(ratios), 3)

    def over_engine(self) -> float:
        port = free_port()
        command = easyllm(
            self.model, "transformers", port, self.asked.concurrency, self.asked.device
        )
        own = [sys.executable, __file__, "--direct", str(self.model),
               *(f"--{key}={getattr(self.asked, key)}"
                 for key in ("requests", "concurrency", "tokens", "device"))]  # fmt: skip
        with serving("easyllm-transformers", command, port, self.folder) as server:
            pipe = subprocess.PIPE
            with subprocess.Popen(
                own, stdin=pipe, stdout=pipe, env=ENVIRONMENT, text=True
            ) as engine:
                assert engine.stdin and engine.stdout
                said, told = engine.stdout, engine.stdin
                server.wait("/ready")
                while said.readline() != "ready\n":
                    assert engine.poll() is None

                def drive() -> float:
                    told.write("\n")
                    told.flush()
                    return float(said.readline())

                self.round(server)  # warm up
                drive()
                return self.compare(server, "engine driven directly", drive)

    def over_vllm(self) -> float:
        ours_port, theirs_port = free_port(), free_port()
        ours = easyllm(self.model, "vllm", ours_port, self.asked.concurrency)
        theirs = vllm(self.model, theirs_port, self.asked.concurrency)
        with (
            serving("easyllm-vllm", ours, ours_port, self.folder) as one,
            serving("vllm-server", theirs, theirs_port, self.folder) as other,
        ):
            one.wait("/ready")
            other.wait("/health")
            self.round(one)
            self.round(other, ours=False)
            return self.compare(one, "vllm's own server", lambda: self.round(other, ours=False))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="of our transformers engine")  # fmt: skip
    parser.add_argument("--only", choices=sorted(ENGINES))
    parser.add_argument("--direct", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.direct:
        direct(asked)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers end too
    engines = [name for name in ENGINES if asked.only in (None, name)
               and (name != "vllm" or find_spec("vllm"))]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked, Path(folder))
        over_engine = bench.over_engine() if "transformers" in engines else None
        over_vllm = bench.over_vllm() if "vllm" in engines else None
    result = {
        "lost": bench.lost, "mixed": bench.mixed, "over_engine": over_engine,
        "over_vllm": over_vllm, "rounding_apart": bench.rounded,
        "growth": round(max(bench.growth), 4),
        "limits": {"over_engine": OVER_ENGINE, "over_vllm": OVER_VLLM, "growth": GROWTH},
    }  # fmt: skip
    print(json.dumps(result))
    short = (over_engine or 1) < OVER_ENGINE or (over_vllm or 1) < OVER_VLLM
    return int(bool(bench.lost or bench.mixed or short or result["growth"] > GROWTH))


if __name__ == "__main__":
    sys.exit(main())
