"""Prefill by transformers on the CPU, for `tandem-bench`'s rows beside it.

Reads a dtype and a number of tokens a line, and answers with the seconds of one forward pass over
so many random tokens, with the cache that generation needs and the logits of the last token.
"""

import os
import sys
import time

import torch
import transformers


def main():
    folder = sys.argv[1]
    torch.set_num_threads(os.cpu_count())
    transformers.utils.logging.set_verbosity_error()
    models = {}
    print("transformers", transformers.__version__, "torch", torch.__version__, flush=True)
    for line in sys.stdin:
        name, count = line.split()
        if name not in models:
            load = transformers.AutoModelForCausalLM.from_pretrained
            models[name] = load(folder, dtype=getattr(torch, name)).eval()
        ids = torch.randint(1000, 40000, (1, int(count)))
        with torch.inference_mode():
            begun = time.perf_counter()
            models[name](ids, use_cache=True, logits_to_keep=1)
            print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
