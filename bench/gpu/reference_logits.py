#!/usr/bin/env python3
"""Logits of transformers for golden cases of a GGUF model, on a GPU, in bf16 and in f32.

    python3 bench/gpu/reference_logits.py MODEL.gguf GOLDEN.json FOLDER

For each case the sequence is its prompt and the golden output; the rows are the logits after the
prompt and after each of the first STEPS - 1 output tokens. FOLDER/CASE.bf16 and FOLDER/CASE.f32
hold them, [STEPS][vocab] as little-endian f32; `transformers_logits_of_the_demo_model` reads them.
Needs torch, transformers and gguf, and no network.
"""

import argparse
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM

STEPS = 17


def load(path: pathlib.Path, dtype: torch.dtype):
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    # The weights are those of the engine's, rounded to bf16, whatever the arithmetic.
    return model.to(torch.bfloat16).to(dtype).to("cuda").eval()


@torch.no_grad()
def greedy(model, prompt: list[int], count: int) -> list[int]:
    ids, past, made = torch.tensor([prompt], device="cuda"), None, []
    while len(made) < count:
        out = model(ids, past_key_values=past, use_cache=True)
        past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        made.append(ids.item())
    return made


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", type=pathlib.Path)
    arguments.add_argument("golden", type=pathlib.Path)
    arguments.add_argument("folder", type=pathlib.Path)
    asked = arguments.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    cases = json.loads(asked.golden.read_text())["cases"]
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        model = load(asked.model, dtype)
        same = total = 0
        for case in cases:
            prompt, output = case["prompt_ids"], case["output_ids"]
            ids = torch.tensor([prompt + output[: STEPS - 1]], device="cuda")
            rows = model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
            (asked.folder / f"{case['id']}.{name}").write_bytes(rows.cpu().numpy().tobytes())
            made = greedy(model, prompt, len(output))
            agree = next((i for i, (a, b) in enumerate(zip(made, output)) if a != b), len(output))
            same, total = same + agree, total + len(output)
        print(f"transformers in {name}: exact up to the first difference: {same / total:.3f}")


if __name__ == "__main__":
    main()
