"""vLLM's asynchronous engine behind the engine's protocol."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.errors import UserError
from easyllm.inference.engine_protocol import EngineFailed, Step, TokenLogprob, ends, room, seed_of
from easyllm.inference.vllm.plugin import MODELS
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.inference.engines import VLLM

ANOTHER = "give another model, or inference.engine._target_=easyllm.inference.engines.Transformers"


class VLLMEngine:
    """An ``easyllm.inference.engine_protocol.Engine`` over vLLM's engine process."""

    def __init__(self, folder: Path, run: RunSpec, fields: VLLM):
        # vLLM reads these when it is imported
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if run.hardware.device == "cpu":
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(fields.kv_cache_gb)
        from transformers import GenerationConfig
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from easyllm.data.tokenizers.portable import of_model
        from easyllm.inference.validate_weights import check_weights

        try:
            check_weights(folder)
            self.tokenizer: Any = of_model(folder)
            args = AsyncEngineArgs(
                model=str(folder),
                dtype=run.model.dtype,
                seed=run.seed,
                max_num_seqs=run.inference.batch_size,
                max_model_len=fields.max_model_len,  # type: ignore[arg-type]
                max_num_batched_tokens=fields.max_num_batched_tokens,
                tensor_parallel_size=fields.tensor_parallel_size,
                pipeline_parallel_size=fields.pipeline_parallel_size,
                gpu_memory_utilization=fields.gpu_memory_utilization,
                enforce_eager=fields.enforce_eager,
                enable_prefix_caching=fields.enable_prefix_caching,
                quantization=fields.quantization,  # type: ignore[arg-type]
                # what a request does not say must not come from the model's own configuration
                generation_config="vllm",
            )
            _check_plugin(folder)
            config = args.create_engine_config()
            if run.hardware.device == "cpu":
                _check_heads(folder, config)
            self._llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder}: vLLM cannot load this model: {_words(error)}; {ANOTHER}"
            ) from error
        try:
            self._generation_config: Any = GenerationConfig.from_pretrained(folder)
        except OSError:  # a model without one
            self._generation_config = self._llm.model_config.hf_config
        self.max_positions: int = self._llm.model_config.max_model_len
        self._ids = itertools.count()
        self._begun: dict[int, bool] = {}

    async def generate(
        self, prompt: Sequence[int], sampling: SamplingSpec
    ) -> AsyncGenerator[Step, None]:
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        limit = room(self, prompt, sampling)
        stops = ends(self.tokenizer, self._generation_config, sampling)
        request = next(self._ids)
        self._begun[request] = False
        outputs = self._llm.generate(
            tokens_input(list(prompt)),
            _params(sampling, limit, stops),
            str(request),
        )
        try:
            async for output in outputs:
                self._begun[request] = True
                yield _step(output.outputs[0], stops, sampling)
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailed(str(error) or type(error).__name__) from error
        finally:
            del self._begun[request]
            await outputs.aclose()

    async def score(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        room(self, tokens, SamplingSpec())
        # vLLM generates a token in any case
        params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=top, detokenize=False, ignore_eos=True
        )
        request, found = f"score-{next(self._ids)}", None
        outputs = self._llm.generate(tokens_input(list(tokens)), params, request)
        try:
            async for output in outputs:
                found = output.prompt_logprobs or found
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailed(str(error) or type(error).__name__) from error
        if found is None:
            raise EngineFailed("vLLM gave no log-probabilities of the prompt")
        return [
            _logprob(token, places, top)
            for token, places in zip(tokens[1:], found[1:], strict=True)
        ]

    @property
    def unfinished(self) -> int:
        return int(self._llm.get_num_unfinished_requests())

    @property
    def waiting(self) -> int:
        return sum(not begun for begun in self._begun.values())

    @property
    def failed(self) -> bool:
        return bool(self._llm.errored)

    def close(self) -> None:
        self._llm.shutdown()


def _check_plugin(folder: Path) -> None:
    """Raises UserError where the model needs a class of easyllm that vLLM has not found."""
    from vllm import ModelRegistry

    config = json.loads((folder / "config.json").read_text("utf-8"))
    ours = {*(config.get("architectures") or ())} & {*MODELS}
    if ours - {*ModelRegistry.get_supported_archs()}:
        raise UserError(
            f"{folder}: vLLM itself has no {' or '.join(ours)} and does not find easyllm's: "
            "install easyllm where vLLM is (pip install .) and, where VLLM_PLUGINS is set, name "
            "easyllm in it"
        )


def _check_heads(folder: Path, config: Any) -> None:
    """Raises UserError where vLLM's attention on CPUs has no kernel for the size of the model's
    heads; vLLM itself looks for one only with the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, known = (
        config.model_config.get_head_size(),
        CPUAttentionBackend.get_supported_head_sizes(),
    )
    if size not in known:
        raise UserError(
            f"{folder}: its attention heads are {size} wide, and on a CPU vLLM has kernels for "
            f"{', '.join(map(str, known))}; {ANOTHER}"
        )


def _words(error: Exception) -> str:
    """vLLM's error message, without pydantic's additions and the list of all known names."""
    errors = getattr(error, "errors", None)
    message = str(errors()[0]["msg"] if errors else error).removeprefix("Value error, ")
    return message.partition(". ")[0].rstrip(".\n")


def _params(sampling: SamplingSpec, limit: int, stops: frozenset[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=limit,
        min_tokens=min(sampling.min_tokens, limit),
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1e-6,  # vLLM does not accept 0; the likeliest token is kept
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop_token_ids=sorted(stops),
        ignore_eos=True,  # the model's own are among stop_token_ids
        seed=seed_of(sampling),
        logprobs=sampling.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _step(output: Any, stops: frozenset[int], sampling: SamplingSpec) -> Step:
    tokens = list(output.token_ids)
    logprobs = []
    for token, places in zip(tokens, output.logprobs or (), strict=False):
        logprobs.append(_logprob(token, places, sampling.logprobs or 0))
    if output.finish_reason is None:
        return Step(tokens, logprobs)
    if tokens and tokens[-1] in stops:
        return Step(tokens[:-1], logprobs[:-1], "stop", logprobs[-1] if logprobs else None)
    return Step(tokens, logprobs, "length")


def _logprob(token: int, places: Any, top: int) -> TokenLogprob:
    """``places`` are vLLM's values at a token's place, by token."""
    ranked = sorted(places.items(), key=lambda item: -item[1].logprob)
    best = tuple((int(id_), float(place.logprob)) for id_, place in ranked[:top])
    return TokenLogprob(token, float(places[token].logprob), best)
