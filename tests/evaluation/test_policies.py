import pytest
import torch
from peft import LoraConfig, get_peft_model

from stateset_agents.evaluation.policies import load_policy_model
from stateset_agents.exceptions import ModelSourceError, RegistryError
from stateset_agents.inference.loading import load_model
from tests.tiny_model import make_tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7]])


def make_adapter(base, folder, seed=1):
    """An adapter with weights that matter; returns the logits that PEFT itself computes with it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(
            load_model(base, dtype="float32"),
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
        ).eval()
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(folder)
    with torch.inference_mode():
        return peft_model(IDS).logits


def test_an_adapter_is_the_base_with_the_adapters_product_added(tiny_model_dir, tmp_path):
    expected = make_adapter(tiny_model_dir, tmp_path / "policy")
    policy = load_policy_model(tmp_path / "policy", tiny_model_dir, dtype="float32")
    base = load_policy_model(tiny_model_dir, tiny_model_dir, dtype="float32")
    with torch.inference_mode():
        torch.testing.assert_close(policy(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert (base(IDS).logits - expected).abs().max() > 0.01


def test_a_whole_model_needs_no_base(tiny_model_dir, tmp_path):
    whole = make_tiny_model(tmp_path / "whole", seed=3)
    policy = load_policy_model(whole, tmp_path / "there is no base", dtype="float32")
    with torch.inference_mode():
        expected = load_model(whole, dtype="float32")(IDS).logits
        assert torch.equal(policy(IDS).logits, expected)


def test_an_adapter_of_another_model_is_refused(tiny_model_dir, tmp_path):
    other = make_tiny_model(tmp_path / "other", layers=3)
    make_adapter(other, tmp_path / "policy")
    with pytest.raises(RegistryError, match="does not belong"):
        load_policy_model(tmp_path / "policy", tiny_model_dir)


def test_a_folder_that_is_no_policy_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ModelSourceError, match="not a folder"):
        load_policy_model(tmp_path / "nothing", tiny_model_dir)
    make_adapter(tiny_model_dir, tmp_path / "policy")
    (tmp_path / "policy" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match=r"no adapter_model\.safetensors"):
        load_policy_model(tmp_path / "policy", tiny_model_dir)
