"""What runs inside vLLM's worker processes, called by `VLLMEngine`.

Owns the log-probs that vLLM has no setting for, and what vLLM leaves out when it takes new weights.
The workers import it, and it imports vLLM only inside functions, so it loads anywhere.

Notation: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

# Below it vLLM takes a temperature for 0, which is greedy.
_GREEDY_BELOW = 1e-5


class WorkerExtension:
    """Methods that vLLM adds to its worker (`worker_extension_cls`), called by `collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def report_whole_vocabulary_logprobs(self) -> bool:
        """Let the sampler report log-probs from before penalty, top-k and top-p.

        Returns:
            False where the worker samples in another way, so that this cannot be done.
        """
        from vllm.v1.sample.sampler import Sampler

        sampler = getattr(self.model_runner, "sampler", None)
        if type(sampler) is not Sampler:
            return False
        self.model_runner.sampler = _whole_vocabulary_sampler(sampler)
        return True

    def take_weights_from(self, folder: str) -> None:
        """Load every weight from a folder's safetensors.

        vLLM reloads layer by layer. A head that is tied to the embedding is no layer of its own
        there, and on a CPU it goes on multiplying with the old weights that it had packed: pack
        them again.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        self.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(method, UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(layer)

    def empty_caches(self) -> None:
        """Fill every block of keys and values with zeros.

        vLLM hands blocks on as they are, and masked values are multiplied by 0: a NaN that was left
        in one would reach whoever gets it next.
        """
        for cache in self.model_runner.kv_caches:
            for tensor in cache if isinstance(cache, list) else [cache]:
                tensor.zero_()


def _whole_vocabulary_sampler(sampler: Any) -> Any:
    """A sampler that draws as `sampler` does.

    vLLM's `processed_logprobs` are of the distribution that it drew from, cut by top-k and top-p;
    its `raw_logprobs` are those of temperature 1. With neither cut nor penalty the former are what
    the protocol asks for, and nothing is done twice.
    """
    from vllm.v1.sample.sampler import Sampler

    class WholeVocabularySampler(Sampler):
        def forward(self, logits: Any, sampling_metadata: Any, *args: Any, **options: Any) -> Any:
            metadata = sampling_metadata
            uncut = metadata.top_k is None and metadata.top_p is None and metadata.no_penalties
            if uncut or metadata.max_num_logprobs is None:
                return super().forward(logits, metadata, *args, **options)
            whole = _logprobs_at(logits, metadata.temperature)  # before `logits` are changed
            output = super().forward(logits, metadata, *args, **options)
            drawn = output.sampled_token_ids.long()
            output.logprobs_tensors.logprobs[:, :1] = whole.gather(1, drawn)
            return output

    return WholeVocabularySampler(sampler.logprobs_mode, sampler.use_fp64_gumbel)


def _logprobs_at(logits: Any, temperature: Any) -> Any:
    """Log-probs `(B, V)` float32 at each row's temperature `(B,)`, at 1 where it is greedy."""
    scaled = logits.float()
    if temperature is not None:  # None: all rows are greedy
        divisor = temperature.masked_fill(temperature < _GREEDY_BELOW, 1.0)
        scaled = scaled / divisor.unsqueeze(1)
    return scaled.log_softmax(dim=-1)
