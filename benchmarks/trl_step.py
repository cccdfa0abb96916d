"""TRL's side: one optimizer step of its `GRPOTrainer`, with the split it spends it on.

A child of `processes.Side`. Settings: `folder`, `workload`, `trl` (how TRL is set, see `TRL_BEST`).

Several turns are played as TRL's own loop over tool calls does it: each turn generates from the
whole context of every conversation, and tokens that were not sampled are masked (`env_mask`). The
scripted user takes the tool's place, through `rollout_func`, TRL's hook for that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.processes import Requests
from benchmarks.rewards import spread_reward
from benchmarks.workloads import EndlessTokenizer, Workload, between, opening, scenarios
from stateset_agents.inference.loading import load_tokenizer


class TimedTrainer(GRPOTrainer):
    """TRL's trainer, with the seconds of its stages."""

    def _generate(self, prompts: list[Any]) -> Any:
        started = time.perf_counter()
        result = super()._generate(prompts)
        self.seconds["rollout"] += time.perf_counter() - started
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        started = time.perf_counter()
        result = super()._generate_and_score_completions(inputs)
        self.seconds["generate_and_score"] += time.perf_counter() - started
        return result

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = super()._get_per_token_logps_and_entropies(*args, **options)
        if not torch.is_grad_enabled():
            self.seconds["logprobs"] += time.perf_counter() - started
        return result

    def reset_seconds(self) -> None:
        """Start counting."""
        self.seconds = {"rollout": 0.0, "generate_and_score": 0.0, "logprobs": 0.0}


class AnswerEachStep(TrainerCallback):
    """Holds training until a step is asked for, and answers with the step's seconds."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.trainer: Any = None
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ready."""
        self.requests.answer({})
        self._wait(control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts where TRL's own step does."""
        self.trainer.reset_seconds()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step is done."""
        seconds, split = time.perf_counter() - self.started, self.trainer.seconds
        self.requests.answer(
            {
                "seconds": seconds,
                "rollout": split["rollout"],
                "logprobs": split["logprobs"],
                "update": seconds - split["generate_and_score"],
            }
        )
        self._wait(control)

    def _wait(self, control: Any) -> None:
        if self.requests.wait() is None:
            control.should_training_stop = True


def conversations(workload: Workload, tokenizer: EndlessTokenizer) -> Callable[..., Any]:
    """`rollout_func`: plays all conversations turn by turn; `env_mask` is 1 where sampled."""
    known = {_key(opening(one)): one for one in scenarios(workload, tokenizer)}

    def play(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        played = [known[_key(prompt)] for prompt in prompts]
        starts = [tokenizer.render(prompt) for prompt in prompts]
        contexts = [list(start) for start in starts]
        masks: list[list[int]] = [[] for _ in prompts]
        for turn in range(workload.turns):
            answers, _ = trainer._generate_single_turn(contexts, None, {}, workload.group)
            for row, answer in enumerate(answers):
                contexts[row] += answer
                masks[row] += [1] * len(answer)
                if turn + 1 < workload.turns:
                    said = between(played[row], turn, tokenizer)
                    contexts[row] += said
                    masks[row] += [0] * len(said)
        completions = [
            context[len(start) :] for context, start in zip(contexts, starts, strict=True)
        ]
        return {
            "prompt_ids": starts,
            "completion_ids": completions,
            "logprobs": None,
            "env_mask": masks,
        }

    return play


def _key(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """TRL's form of `rewards.spread_reward`."""
    return [spread_reward(str(ids)) for ids in completion_ids]


def make_trainer(
    settings: dict[str, Any], workload: Workload, tokenizer: EndlessTokenizer, output: str
) -> TimedTrainer:
    """A `GRPOTrainer` with our adapter, our loss and the settings it is fastest with."""
    chosen = settings["trl"]
    micro = chosen["micro_batch_rows"]
    model = AutoModelForCausalLM.from_pretrained(
        settings["folder"],
        dtype=chosen["dtype"],
        attn_implementation=chosen["attention"],
        local_files_only=True,
    )
    # no token of the vocabulary ends an answer
    never = len(tokenizer.hf) + 1
    args = GRPOConfig(
        output_dir=output,
        use_cpu=not torch.cuda.is_available(),
        bf16=chosen["autocast"],
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=workload.rows // micro,
        num_generations=workload.group,
        max_completion_length=workload.answer_tokens,
        generation_kwargs={"eos_token_id": never},
        use_transformers_continuous_batching=chosen["continuous_batching"],
        # without a number of pages they take most of the machine's memory
        transformers_continuous_batching_config={"page_size": 64, "num_blocks": 1024},
        beta=0.0,
        loss_type="grpo",
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=1e-6,
        max_steps=10_000,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=settings.get("seed", 0),
    )
    rows = [{"prompt": opening(one)} for one in scenarios(workload, tokenizer)]
    trainer = TimedTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer.hf,
        rollout_func=conversations(workload, tokenizer) if workload.turns > 1 else None,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.eos_token_ids = [never]
    trainer.reset_seconds()
    return trainer


def main() -> None:
    """Train until nobody asks for another step."""
    requests = Requests()
    settings = requests.settings()
    workload = Workload(**settings["workload"])
    tokenizer = EndlessTokenizer(load_tokenizer(settings["folder"]).hf)
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(settings, workload, tokenizer, output)
        answers = AnswerEachStep(requests)
        answers.trainer = trainer
        trainer.add_callback(answers)
        trainer.train()


if __name__ == "__main__":
    main()
