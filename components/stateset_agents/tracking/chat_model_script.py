"""The code inside a registered model: MLflow copies this file into every version.

`mlflow.pyfunc.load_model("models:/NAME@champion").predict([{"messages": [...]}])` runs it, so it
must work where nothing of this package is installed: it needs mlflow, torch and transformers alone.
A list of chat requests goes in, a list of chat completions (OpenAI's form) comes out, one after the
other; the server (`stateset_agents.serving`) is for more than that.

MLflow reads the types of `predict` at run time: no postponed annotations in this file.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pydantic import BaseModel


class ChatMessage(BaseModel):
    """One message."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """What a caller may say; None = the setting that the version was registered with."""

    messages: list[ChatMessage]
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None


class Choice(BaseModel):
    """An answer; `finish_reason` is stop or length."""

    index: int
    message: ChatMessage
    finish_reason: str


class Usage(BaseModel):
    """How many tokens went in and came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """What comes back for each request, as a dict of this form."""

    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class RegisteredPolicy(PythonModel):
    """A chat model folder with the generation settings it was trained and evaluated with."""

    def load_context(self, context: Any) -> None:
        """Read the generation settings; the weights are loaded by the first request."""
        self._folder = Path(context.artifacts["policy"])
        settings = self._folder / "generation_settings.json"
        self._settings: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8"))
        self._loaded: tuple[Any, Any] | None = None

    def predict(  # type: ignore[override]  # MLflow allows leaving out `context`
        self, model_input: list[ChatRequest], params: dict[str, Any] | None = None
    ) -> list[ChatCompletion]:
        """Answer each conversation. The completions are dicts: MLflow takes the output's schema
        from the type, and hands on what is returned as it is.

        Raises:
            ValueError: a request without messages.
        """
        return [self._answer(request) for request in model_input]  # type: ignore[misc]

    def _answer(self, request: ChatRequest) -> dict[str, Any]:
        import torch

        if not request.messages:
            raise ValueError("a chat request needs at least one message")
        model, tokenizer = self._load()
        text = tokenizer.apply_chat_template(
            self._with_system_prompt(request.messages), tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        num_prompt = int(prompt["input_ids"].shape[1])
        # the seed belongs to this request: random numbers elsewhere in the process stay theirs
        with torch.random.fork_rng(), torch.inference_mode():
            if request.seed is None:
                torch.seed()
            else:
                torch.manual_seed(request.seed)
            output = model.generate(
                **prompt, **self._sampling(request), pad_token_id=tokenizer.pad_token_id
            )
        sampled = output[0, num_prompt:].tolist()
        ends = model.generation_config.eos_token_id
        ended = bool(sampled) and sampled[-1] in (ends if isinstance(ends, list) else [ends])
        answer = self._without_thoughts(
            tokenizer.decode(sampled, skip_special_tokens=True), after=text
        )
        for stop in request.stop or []:
            answer, found, _ = answer.partition(stop)
            ended = ended or bool(found)
        return self._completion(answer, "stop" if ended else "length", num_prompt, len(sampled))

    def _without_thoughts(self, answer: str, *, after: str) -> str:
        """What is outside of the reasoning tags; a prompt may have opened the first thought."""
        if not self._settings.get("enable_reasoning"):
            return answer
        opening, closing = self._settings["reasoning_tags"]
        if after.rstrip().endswith(opening):
            answer = opening + answer
        thought = f"{re.escape(opening)}.*?(?:{re.escape(closing)}|$)"
        said, thoughts = re.subn(thought, "", answer, flags=re.DOTALL)
        return said.lstrip() if thoughts else said

    def _completion(
        self, answer: str, finish_reason: str, num_prompt: int, num_sampled: int
    ) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer}
        return {
            "object": "chat.completion",
            "created": int(time.time()),
            "model": str(self._settings.get("model", "")),
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_sampled,
                "total_tokens": num_prompt + num_sampled,
            },
        }

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._folder)
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token_id = tokenizer.eos_token_id
            model = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype="auto", use_safetensors=True
            )
            self._loaded = (model.eval(), tokenizer)
        return self._loaded

    def _with_system_prompt(self, messages: list[ChatMessage]) -> list[dict[str, str]]:
        history = [{"role": one.role, "content": one.content} for one in messages]
        told = [str(self._settings.get(key) or "") for key in ("system_prompt", "thinking_prompt")]
        prompt = "\n\n".join(part for part in told if part)
        if not prompt:
            return history
        if history[0]["role"] == "system":
            prompt, history = f"{prompt}\n\n{history[0]['content']}", history[1:]
        return [{"role": "system", "content": prompt}, *history]

    def _sampling(self, request: ChatRequest) -> dict[str, Any]:
        own = {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": 128,
            "repetition_penalty": 1.0,
            **self._settings,
        }
        asked = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "max_new_tokens": request.max_tokens,
        }
        own |= {name: value for name, value in asked.items() if value is not None}
        sampling = {
            "max_new_tokens": int(own["max_new_tokens"]),
            "repetition_penalty": float(own["repetition_penalty"]),
            "do_sample": own["temperature"] > 0,
        }
        if sampling["do_sample"]:
            sampling |= {
                "temperature": float(own["temperature"]),
                "top_p": float(own["top_p"]),
                "top_k": int(own["top_k"]),
            }
        return sampling


set_model(RegisteredPolicy())
