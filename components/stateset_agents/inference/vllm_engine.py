"""The engine for those who outgrow one process: vLLM behind the Engine protocol.

Owns the thread that vLLM's event loop runs in, how a request is put to vLLM, and how new weights
get there. Batching, the cache of keys and values and the processes that compute are vLLM's. vLLM is
imported when an engine is made, so this module loads without it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stateset_agents.exceptions import ConfigurationError, EngineError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    OnToken,
    SamplingParams,
)
from stateset_agents.inference.loading import DtypeName, load_tokenizer, resolve_dtype
from stateset_agents.inference.model_names import model_folder
from stateset_agents.inference.request_checks import check_request, check_weights
from stateset_agents.inference.weight_files import WeightFiles

if TYPE_CHECKING:
    import torch

_Answer = TypeVar("_Answer")
# vLLM samples at this temperature where a lower one is asked for.
_LEAST_TEMPERATURE = 1e-2
_SHUTDOWN_SECONDS = 10.0


class VLLMEngine:
    """The Engine protocol over vLLM's `AsyncLLM`.

    vLLM computes in processes of its own, which import the caller's main module again: guard a
    script with `if __name__ == "__main__":`. Its prefix cache finds what requests share, in blocks
    of tokens, so conversation and group ids are not needed and `release` does nothing.

    Args:
        folder: a model's folder, or its name: config, tokenizer and safetensors.
        dtype: of weights and computation; "auto" is bfloat16 where the hardware has it.
        max_batch_size: answers under way at once; further requests wait in line.
        max_context_tokens: the most tokens of a prompt and its answer; None takes the model's own.
        cache_bytes: memory for keys and values on each device.
        weights_folder: where new weights are written for vLLM's processes to read; it needs room
            for two models. None takes memory (`/dev/shm`) where that exists.
        **engine_args: further arguments of vLLM's `AsyncEngineArgs`, `tensor_parallel_size` or
            `block_size` for example. `enforce_eager` is on unless it is set here: the engine starts
            sooner, and new weights are tested so.

    Raises:
        ConfigurationError: vLLM is not installed.
        EngineError: vLLM cannot serve this model with these arguments.
        ModelSourceError: the folder is not there or is broken.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        dtype: DtypeName | torch.dtype = "auto",
        max_batch_size: int = 32,
        max_context_tokens: int | None = None,
        cache_bytes: int = 2 * 1024**3,
        weights_folder: Path | None = None,
        **engine_args: Any,
    ) -> None:
        _import_vllm()
        folder = model_folder(folder)
        self._tokenizer = load_tokenizer(folder)
        self._weights = WeightFiles(Path(folder), weights_folder)
        self._numbers = itertools.count()
        self._asking: set[asyncio.Task[Any]] = set()
        self._cached_tokens = 0
        self._renewing = asyncio.Lock()
        self._tainted = False  # a NaN may lie in vLLM's blocks
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        arguments = {
            "model": str(folder),
            "dtype": _dtype_name(dtype),
            "max_num_seqs": max_batch_size,
            "max_model_len": max_context_tokens,
            "kv_cache_memory_bytes": cache_bytes,
            "enforce_eager": True,
            **engine_args,
        }
        try:
            self._llm, self._reports_uncut = self._call(_start(arguments))
        except Exception as error:  # whatever vLLM finds wrong: attribute it
            self._stop_loop()
            raise EngineError(f"vLLM cannot serve {folder}: {error}") from error
        self._vocabulary = int(self._llm.model_config.get_vocab_size())
        self._max_context_tokens = int(self._llm.model_config.max_model_len)

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Text to tokens and back, chat template included."""
        return self._tokenizer

    @property
    def max_context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._max_context_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that vLLM's prefix cache had already: what it saves shows here."""
        return self._cached_tokens

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        """Sample one continuation; many calls may wait at once and are batched.

        `on_token` hears each sampled id as it comes, on the caller's event loop.

        Raises:
            ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
            EngineError: the request makes no sense, vLLM cannot report its log-probs, the engine
                is closed, or the model failed.
        """
        self._check(request)
        loop = asyncio.get_running_loop()
        heard: list[int] = []
        failed: list[Exception] = []

        def hear(token: int) -> None:
            assert on_token is not None
            if failed:
                return
            try:
                on_token(token)
            except Exception as error:  # of whoever listens: raised to them below
                failed.append(error)
                asked.cancel()  # nobody wants the rest

        def hand_over(token_ids: Sequence[int]) -> None:
            for token in token_ids[len(heard) :]:
                heard.append(int(token))
                loop.call_soon_threadsafe(hear, int(token))

        asking = self._ask(request, None if on_token is None else hand_over)
        asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            result = await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            if failed:
                raise failed[0] from None
            raise
        if failed:
            raise failed[0]
        return result

    def release(self, conversation_id: str) -> None:
        """Nothing to do: vLLM drops the blocks that were not used for longest."""

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace parameters by name and drop every cached key and value.

        All weights are written to a file, which vLLM reads as it read the model's own: it fuses and
        splits them as its model needs. Answers under way wait, and go on with the new weights.

        Raises:
            EngineError: a name or shape that the model's files do not have, and nothing was
                replaced; or vLLM failed, and the engine is of no further use.
        """
        self._refuse_closed()
        given = list(weights)
        check_weights(given, self._weights.shapes)
        folder = self._weights.write(given) if given else None
        try:
            self._call(self._renew(folder))
        except Exception as error:  # whatever vLLM finds wrong: attribute it
            raise EngineError(
                f"vLLM failed to take new weights: {error}. Make a new engine."
            ) from error

    async def aclose(self) -> None:
        """Fail what waits, end vLLM's processes and delete written weights; twice is fine."""
        if self._closed:
            return
        self._closed = True
        stopped = asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        await asyncio.wrap_future(stopped)
        self._stop_loop()
        self._weights.delete()

    # The caller's side

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EngineError("The engine is closed; make a new one to generate.")

    def _check(self, request: GenerationRequest) -> None:
        self._refuse_closed()
        check_request(
            request,
            vocabulary=self._vocabulary,
            max_context_tokens=self.max_context_tokens,
            least_temperature=_LEAST_TEMPERATURE,
        )
        if not self._reports_uncut and _is_cut(request.sampling):
            raise EngineError(
                "This vLLM reports log-probs after top_k, top_p and repetition_penalty have cut "
                "the distribution, and training needs them from before. Turn the three off, or set "
                "VLLM_USE_V2_MODEL_RUNNER=0 before the engine is made."
            )

    def _call(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Wait for work on vLLM's loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # On vLLM's loop

    async def _ask(
        self,
        request: GenerationRequest,
        on_answer: Callable[[Sequence[int]], None] | None,
    ) -> GenerationResult:
        """`on_answer` gets the answer's ids so far, each time that there are more."""
        from vllm.inputs.engine import tokens_input

        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            if self._tainted:
                await self._renew(None)
            outputs = self._llm.generate(
                tokens_input(list(request.prompt_token_ids)),
                self._params(request.sampling, in_pieces=on_answer is not None),
                request_id=f"request-{next(self._numbers)}",
            )
            async for output in outputs:  # only one, when it has ended, if nobody listens
                if on_answer is not None:
                    on_answer(output.outputs[0].token_ids)
        except asyncio.CancelledError:
            if self._closed:
                raise EngineError("The engine was closed while a request waited.") from None
            raise
        except Exception as error:  # attributed to the request that it concerns
            raise EngineError(f"Generation failed: {type(error).__name__}: {error}") from error
        finally:
            self._asking.discard(task)
        self._cached_tokens += output.num_cached_tokens or 0
        return self._result(output)

    def _params(self, sampling: SamplingParams, *, in_pieces: bool) -> Any:
        from vllm import SamplingParams as VLLMParams
        from vllm.sampling_params import RequestOutputKind

        return VLLMParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            stop_token_ids=sorted(self._tokenizer.stop_token_ids),
            ignore_eos=True,  # the tokenizer's is among the stop tokens
            logprobs=0,  # the sampled token's
            flat_logprobs=True,
            detokenize=False,
            output_kind=(
                RequestOutputKind.CUMULATIVE if in_pieces else RequestOutputKind.FINAL_ONLY
            ),
        )

    def _result(self, output: Any) -> GenerationResult:
        (answer,) = output.outputs
        token_ids = tuple(int(token) for token in answer.token_ids)
        logprobs = tuple(min(float(value), 0.0) for value in answer.logprobs.logprobs)
        if not all(math.isfinite(value) for value in logprobs):
            self._tainted = True
            raise EngineError(
                "The model's logits are not finite. Its weights hold NaN or infinity, or its "
                "number format is too narrow; try dtype float32."
            )
        stopped = token_ids[-1] in self._tokenizer.stop_token_ids
        return GenerationResult(
            token_ids, logprobs, FinishReason.STOP if stopped else FinishReason.LENGTH
        )

    async def _renew(self, folder: Path | None) -> None:
        """Take the weights in `folder`, if any, and forget every key and value."""
        async with self._renewing:
            await self._llm.pause_generation(mode="keep", clear_cache=False)
            try:
                if folder is not None:
                    await self._llm.collective_rpc("take_weights_from", args=(str(folder),))
                if self._tainted:
                    await self._llm.collective_rpc("empty_caches")
                    self._tainted = False
                await self._llm.reset_prefix_cache(reset_running_requests=True)
            finally:
                await self._llm.resume_generation()

    async def _stop(self) -> None:
        asking = list(self._asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        self._llm = None  # it would shut down once more when it is collected


def _import_vllm() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"the vllm engine needs vLLM, which cannot be imported: {error}. Install the extra: "
            "pip install 'stateset-agents[vllm]', in an environment of its own (docs/engines.md)"
        ) from error


def _dtype_name(dtype: DtypeName | torch.dtype) -> str:
    from vllm.platforms import current_platform

    return str(resolve_dtype(dtype, current_platform.device_type)).removeprefix("torch.")


def _is_cut(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.repetition_penalty != 1.0


async def _start(arguments: dict[str, Any]) -> tuple[Any, bool]:
    """Start vLLM; say whether it can report log-probs from before top-k, top-p and penalty."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="stateset_agents.inference.vllm_worker.WorkerExtension",
            generation_config="vllm",  # no defaults of its own from the model's folder
            disable_log_stats=True,
            **arguments,
        )
    )
    try:
        return llm, all(await llm.collective_rpc("report_whole_vocabulary_logprobs"))
    except BaseException:
        llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        raise
