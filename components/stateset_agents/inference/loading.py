"""Read a model and its tokenizer from a folder.

Owns the choices of number format, device and attention, and the messages for folders that are
broken. Where the folder of a name is, `model_names.py` knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stateset_agents.exceptions import ConfigurationError, ModelSourceError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.model_names import model_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
AttentionName = Literal["sdpa", "eager", "flash_attention_2"]


def has_native_bfloat16(device: str = "cpu") -> bool:
    """True where bfloat16 products are done by the hardware, and are so faster than float32's."""
    import torch

    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.device(device).type != "cpu":
        return False
    abilities = torch.backends.cpu.get_cpu_capability()
    flags = _processor_flags()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & flags) and abilities != "DEFAULT"


def has_native_float16(device: str = "cpu") -> bool:
    """True where float16 products are done by the hardware."""
    import torch

    if torch.device(device).type == "cuda":
        return True
    return torch.device(device).type == "cpu" and bool(
        {"avx512_fp16", "amx_fp16", "asimdhp"} & _processor_flags()
    )


def resolve_dtype(dtype: DtypeName | torch.dtype, device: str = "cpu") -> torch.dtype:
    """The torch dtype of a setting; "auto" is bfloat16 where the hardware has it, else float32.

    Raises:
        ModelSourceError: a name that is not one of the four.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    named = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    if dtype not in named:
        raise ModelSourceError(
            f"dtype {dtype!r} is not known; use one of auto, {', '.join(sorted(named))}."
        )
    return named[dtype]


def resolve_device(device_map: str) -> tuple[str, str | None]:
    """The torch device of a setting, and what a person should know about the choice, if anything.

    "auto" is the first CUDA device, else the CPU.

    Raises:
        ConfigurationError: a CUDA device by name, where torch finds none.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if device_map.startswith("cuda") and not has_cuda:
        raise ConfigurationError(
            f"device_map is {device_map!r}, and torch finds no CUDA device here; use auto or cpu"
        )
    if device_map != "auto":
        return device_map, None
    if has_cuda:
        return "cuda", None
    return "cpu", 'device_map="auto" found no CUDA device; using the CPU'


def resolve_attention(
    attn_implementation: AttentionName, device: str, dtype: torch.dtype
) -> tuple[AttentionName, str | None]:
    """The attention of a setting that this machine has, and what a person should know about it.

    "flash_attention_2" needs a CUDA device, the flash-attn package and weights of 16 bits; without
    them it is "sdpa", torch's own, which computes the same.
    """
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    if attn_implementation != "flash_attention_2":
        return attn_implementation, None
    lacking = []
    if torch.device(device).type != "cuda":
        lacking.append("a CUDA device")
    elif not is_flash_attn_2_available():
        lacking.append("the flash-attn package, 2.3.3 or newer")
    if dtype not in (torch.bfloat16, torch.float16):
        lacking.append(f"bfloat16 or float16 instead of {str(dtype).removeprefix('torch.')}")
    if not lacking:
        return attn_implementation, None
    return "sdpa", (
        f'attn_implementation="flash_attention_2" needs {" and ".join(lacking)}; using "sdpa"'
    )


def load_model(
    folder: Path | str,
    dtype: DtypeName | torch.dtype = "auto",
    device: str = "cpu",
    *,
    attn_implementation: AttentionName = "sdpa",
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        folder: a model's folder, or its name as in `model_names.model_folder`.
        dtype: of the weights, as in `resolve_dtype`.
        device: where they go.
        attn_implementation: one that this machine has, see `resolve_attention`.

    Raises:
        ModelSourceError: the folder is not there, has no config.json, holds weights that are
            truncated, missing, in an unsafe format, or do not fit its config.
    """
    from transformers import AutoModelForCausalLM

    folder = model_folder(folder)
    _check_folder(folder, "config.json")
    check_weights_files(folder)
    chosen = resolve_dtype(dtype, device)
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=chosen,
                attn_implementation=attn_implementation,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a broken folder provokes: attribute it
        raise ModelSourceError(
            f"{folder} cannot be loaded as a causal language model: {error}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelSourceError(
            f"{folder} lacks {len(missing)} of the weights that its config asks for, first "
            f"{missing[0]!r}. Fetch the base model again."
        )
    return model.to(device).eval()  # type: ignore[no-any-return, arg-type]


def load_tokenizer(folder: Path | str) -> ChatTokenizer:
    """Load the tokenizer, its chat template and the stop tokens of the generation config; `folder`
    is a folder or a name as in `model_names.model_folder`.

    Raises:
        ModelSourceError: the folder is not there, or holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer, GenerationConfig

    folder = model_folder(folder)
    _check_folder(folder)
    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken folder provokes: attribute it
        raise ModelSourceError(f"{folder} has no tokenizer that can be read: {error}") from error
    stops: list[int] = []
    if (folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        stops = [] if named is None else named if isinstance(named, list) else [named]
    return ChatTokenizer(hf, stop_token_ids=stops)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers' bar for a second's work out of the steps' own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_folder(folder: Path, *files: str) -> None:
    if not folder.is_dir():
        raise ModelSourceError(
            f"{folder} is not a folder. Run the fetch_base_model step, or give a model's folder."
        )
    for name in files:
        if not (folder / name).is_file():
            raise ModelSourceError(
                f"{folder} has no {name}, so it is not a model's folder. "
                "Run the fetch_base_model step, or give a model's folder."
            )


def check_weights_files(folder: Path) -> None:
    """Read every weight file's header: a truncated one is named before anything is loaded."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelSourceError(
            f"{folder} has no *.safetensors file. Weights in other formats are not loaded, because "
            "unpickling can run code; save the model with safetensors."
        )
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ModelSourceError(
                f"{path} is truncated or not a safetensors file ({path.stat().st_size} bytes): "
                f"{error}. Fetch the base model again."
            ) from error


def _processor_flags() -> set[str]:
    """The instruction sets that Linux reports; elsewhere none, so "auto" is float32 there."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return set(value.split())
    return set()
