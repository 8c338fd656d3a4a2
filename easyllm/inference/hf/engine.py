"""Transformers' continuous batching behind the engine's protocol."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.utils import logging

from easyllm.data.tokenizers.portable import of_model
from easyllm.errors import UserError
from easyllm.inference.engine_protocol import EngineFailed, Step, TokenLogprob, ends, room
from easyllm.inference.hf.sampler import Sampler
from easyllm.inference.hf.scoring import scored
from easyllm.inference.token_stream import InLoop, StepSink, StreamReader
from easyllm.inference.validate_weights import check_weights
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.model.attention import INSTEAD
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.inference.engines import Transformers

CPU_CACHE_GB = 2.0
"""Most memory for keys and values on a CPU, unless ``kv_cache_gb`` is given."""
INTERVAL, LONGEST_INTERVAL = 0.002, 0.1
"""Least seconds between the pieces of an answer: for each other answer under way, and the limit
of their sum."""
PAGE = {"cpu": 32, "cuda": 256}
"""Tokens a page of keys and values; flash attention asks for multiples of 256."""


@dataclass
class Answer:
    """An answer under way, in the thread that generates."""

    sampling: SamplingSpec
    prompt_tokens: int
    ends: frozenset[int]
    sink: StepSink
    to: Any
    """The key by which its receiver knows it."""
    sent: int = 0
    """Tokens in the steps so far."""
    over: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    draws: torch.Generator | None = None

    def step(self, output: GenerationOutput) -> Step | EngineFailed:
        """The answer's tokens since the last step."""
        self.over = output.error is not None or output.is_finished()
        if output.error is not None:
            return EngineFailed(output.error)
        tokens = output.generated_tokens[self.sent :]
        logprobs = self.logprobs[self.sent : self.sent + len(tokens)]
        self.sent += len(tokens)
        if not self.over:
            return Step(tokens, logprobs)
        if tokens and tokens[-1] in self.ends:
            return Step(tokens[:-1], logprobs[:-1], "stop", logprobs[-1] if logprobs else None)
        return Step(tokens, logprobs, "length")


class StepRouter(OutputRouter):
    """Gives a step's outputs to their receivers, to each all of its outputs at once.

    Sending a piece delays the generation where an event loop shares Python with it, and uses the
    machine's time in any case. So the more answers there are, the fewer pieces they come in: the
    tokens of an output that is skipped are in the next output too.
    """

    def __init__(self, answers: dict[str, Answer]):
        super().__init__()
        self._answers = answers
        self._due = 0.0

    def deliver(self, output: GenerationOutput) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        by_sink: dict[StepSink, list[tuple[Any, Step | EngineFailed]]] = {}
        now = time.monotonic()
        due = now >= self._due
        if due:
            self._due = now + min(INTERVAL * (len(outputs) - 1), LONGEST_INTERVAL)
        for output in outputs:
            answer = self._answers.get(output.request_id)
            if answer is None:  # aborted meanwhile
                continue
            if due or not answer.sent or output.is_finished() or output.error is not None:
                by_sink.setdefault(answer.sink, []).append((answer.to, answer.step(output)))
        for sink, grown in by_sink.items():
            sink(grown)


class HFEngine:
    """An ``easyllm.inference.engine_protocol.Engine`` over one model on one device.

    A thread generates; a new request joins the batch at the next step.
    """

    def __init__(self, folder: Path, run: RunSpec, fields: Transformers):
        device = run.hardware.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "hardware.device=cuda: torch finds no CUDA device; give hardware.device=cpu"
            )
        logging.disable_progress_bar()
        try:
            check_weights(folder)
            self.tokenizer: Any = of_model(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, run.model.dtype),
                attn_implementation=INSTEAD.get(run.model.attention, run.model.attention),
            )
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"{folder}: transformers cannot load this model and its tokenizer: {error}"
            ) from error
        self.model = model.to(device).eval()
        self._attention: str = model.config._attn_implementation
        self._scoring = threading.Lock()
        self._generation_config = model.generation_config
        self._answers: dict[str, Answer] = {}
        self._ids = map(str, itertools.count())
        self._manager = self._started(model, run, fields)
        cache = self._manager.batch_processor.cache
        config = model.config.get_text_config()
        # beyond seq_length Qwen's positions must be stretched, which is not done
        self.max_positions: int = min(
            config.max_position_embeddings,
            getattr(config, "seq_length", config.max_position_embeddings),
            cache.num_blocks * PAGE[device],
        )

    def _started(self, model: Any, run: RunSpec, fields: Transformers) -> Any:
        device = run.hardware.device
        try:
            _check_cache(model.config.get_text_config())
            # What a request does not give must not come from the model's own configuration.
            manager = model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE[device],
                    num_blocks=_blocks(model, run, fields),
                    max_batch_tokens=fields.max_batch_tokens,
                    max_requests_per_batch=run.inference.batch_size,
                    # tokens are chosen in Python, between a step and the next
                    use_async_batching=False,
                    use_cuda_graph=False,
                ),
            )
            manager.logit_processor = Sampler(self._answers.get)
            manager.output_router = StepRouter(self._answers)
            manager.warmup()
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"transformers cannot batch a {type(model).__name__} continuously: {error}; "
                "give another model, or inference.engine._target_=easyllm.inference.engines.VLLM"
            ) from error
        manager.start()
        return manager

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingSpec
    ) -> AsyncGenerator[Step, None]:
        request, reader = next(self._ids), StreamReader()
        self.begin(request, prompt, sampling, InLoop(asyncio.get_running_loop()), reader)
        finished = False
        try:
            while not finished:
                step = await reader.next()
                finished = step.finish_reason is not None
                yield step
        finally:
            self.leave(request)

    def begin(
        self, request: str, prompt: Sequence[int], sampling: SamplingSpec, sink: StepSink, to: Any
    ) -> None:
        """Begin an answer, in any thread; ``take`` is given its steps, with ``to``.
        Raises as ``generate``."""
        limit = room(self, prompt, sampling)
        stops = ends(self.tokenizer, self._generation_config, sampling)
        self._answers[request] = Answer(sampling, len(prompt), stops, sink, to)
        added = not self.failed and self._manager.add_request(
            list(prompt),
            request_id=request,
            max_new_tokens=limit,
            streaming=True,
            eos_token_id=sorted(stops) or -1,
        )
        if not added:
            del self._answers[request]
            raise EngineFailed("the engine has stopped")

    async def score(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        return await asyncio.to_thread(self.scored, tokens, top)

    def scored(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """``score``, in any thread. The answers under way wait for it."""
        room(self, tokens, SamplingSpec())
        try:
            with self._scoring, self._manager.pause():
                return scored(self.model, self._attention, tokens, top)
        except torch.OutOfMemoryError:
            raise UserError(
                f"the log-probabilities of {len(tokens)} tokens do not fit into memory beside the "
                "answers under way; give fewer tokens"
            ) from None
        except RuntimeError as error:
            if self.failed:
                raise EngineFailed("the engine has stopped") from error
            raise

    def leave(self, request: str) -> None:
        """Forget an answer, and end it where it is under way."""
        answer = self._answers.pop(request, None)
        if answer is not None and not answer.over:
            self._manager.cancel_request(request)

    @property
    def waiting(self) -> int:
        return sum(not answer.sent for answer in list(self._answers.values()))

    @property
    def unfinished(self) -> int:
        return len(self._answers) or int(self._manager.batch_processor.has_pending_requests())

    @property
    def failed(self) -> bool:
        return not self._manager.is_running()

    def close(self) -> None:
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=60, hard_stop=True)


def _check_cache(config: Any) -> None:
    """Raises ValueError for a model whose keys and values have different widths, which its cache
    cannot hold (transformers 5.19)."""
    widths = [getattr(config, name, 0) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if all(widths) and sum(widths) != config.v_head_dim:
        raise ValueError(
            f"its keys have {sum(widths)} numbers a head and its values {config.v_head_dim}"
        )


def _blocks(model: Any, run: RunSpec, fields: Transformers) -> int | None:
    """Pages of keys and values; None where transformers takes what the device has free."""
    config = model.config.get_text_config()
    device = run.hardware.device
    if fields.kv_cache_gb is None and device == "cuda":
        return None
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    page_bytes = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * PAGE[device]
    full = -(-config.max_position_embeddings // PAGE[device]) + 1
    budget = int((fields.kv_cache_gb or CPU_CACHE_GB) * 1e9 // page_bytes)
    if fields.kv_cache_gb is None:
        budget = min(budget, full * run.inference.batch_size)
    if budget < 2:
        raise UserError(
            f"inference.engine.kv_cache_gb={fields.kv_cache_gb}: one page of keys and values "
            f"takes {page_bytes / 1e9:.3f} GB; give more"
        )
    return budget
