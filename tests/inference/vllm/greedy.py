"""vLLM's greedy answers of several models, one after the other in this process.

``python -m tests.inference.vllm.greedy FILE``: JSON of ``models``, folders by name, ``prompts``,
token ids, ``tokens``, how many to generate, and ``ranks`` that share each layer. The last line
is JSON: answers by name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# read by vLLM when it is imported; a process for each model would take five times as long
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def answers(folder: str, prompts: list[list[int]], tokens: int, ranks: int) -> list[list[int]]:
    """What follows each prompt; all are asked at once."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        # prompts in pieces, beside answers under way
        max_num_batched_tokens=48,
        max_num_seqs=4,
        enforce_eager=True,
        tensor_parallel_size=ranks,
        generation_config="vllm",
    )
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = llm.generate(asked, greedy, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return [list(output.outputs[0].token_ids) for output in found]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    made = {
        name: answers(folder, given["prompts"], given["tokens"], given["ranks"])
        for name, folder in given["models"].items()
    }
    print(json.dumps(made))
