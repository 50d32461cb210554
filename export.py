"""Export a trained model: for Hugging Face's programs, llama.cpp, nanoGPT, or as one safe file.

    python export.py --out_dir=out-shakespeare-char --to=hf --out=exported
    python export.py --out_dir=out-quickstart --to=hf_code --out=exported-code
    python export.py --out_dir=out-quickstart --to=safetensors --out=model.safetensors
    python export.py --out_dir=out-shakespeare-char --to=nanogpt --out=out-nanogpt
    python export.py --init_from=gpt2 --to=gguf --out=gpt2.gguf --weights_dtype=q8_0

hf: a folder that transformers (AutoModelForCausalLM, AutoTokenizer) and what builds on it load
without any code of ours: weights, configuration, tokenizer, chat template. hf_code: such a folder
of any GPT, edited or not, with model.py in it, which transformers executes if it is told
trust_remote_code=True. gguf: a file for llama.cpp (needs pip install gguf). safetensors: any model
in one file, with our own names and its tokenizer, for all programs here (--init_from=FILE); nothing
in it can be executed. nanogpt: a ckpt.pt that nanoGPT's sample.py loads. docs/interop.md says what
goes where, and what is lost.
"""

if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

import os
import shlex
from pathlib import Path

from bonsai.engine.prefill_decode import differs_with_cache
from bonsai.engine.text import find_tokenizer
from bonsai.models.export import (
    export_gguf,
    export_hugging_face,
    export_nanogpt,
    export_with_code,
    portable,
)
from bonsai.models.loading import find_source, load_model
from bonsai.runs.portable import write_portable
from bonsai.system.errors import UserError, run
from configurator import Config, configure

init_from = "resume"  # resume: the run in out_dir; gpt2*; or a checkpoint, or a folder [path]
out_dir = "out"  # the run to export; ignored if init_from is not resume [path]
to = "hf"  # [hf | hf_code | gguf | safetensors | nanogpt]
out = ""  # a folder, for gguf and safetensors a file; it must not exist yet [path]
weights_dtype = "float32"  # q8_0: only for gguf [float32 | bfloat16 | float16 | q8_0]

SHAPES = {"safetensors": "FILE.safetensors", "gguf": "FILE.gguf"}


def target(c: Config) -> Path:
    """Where to write. Raises UserError if something is there already, or for an unsuitable name."""
    if not c.out:
        raise UserError(f"say where to write it: --out={SHAPES.get(c.to, 'FOLDER')}")
    path = Path(c.out)
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: name another --out, or remove it first")
    if c.to in SHAPES and path.suffix != f".{c.to}":
        raise UserError(f"--to={c.to} writes a file: name one that ends in .{c.to}")
    if c.weights_dtype == "q8_0" and c.to != "gguf":
        raise UserError(f"--weights_dtype=q8_0 is for --to=gguf, not for {c.to}")
    return path


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    path = target(c)
    loaded = load_model(find_source(c.init_from, c.out_dir))
    tokenizer, where = find_tokenizer(loaded)
    if loaded.newer:
        print(loaded.newer)
    size = loaded.model.num_params(non_embedding=False) / 1e6
    print(f"model: {loaded.source}, {size:.2f}M parameters; tokenizer: {where}")
    if c.to == "safetensors":
        write_portable(path, portable(loaded, tokenizer, c.weights_dtype))
        print(f"wrote {path}: python sample.py {shlex.quote(f'--init_from={path}')}")
    elif c.to == "gguf":
        export_gguf(loaded, tokenizer, path, c.weights_dtype)
        print(f"wrote {path}")
    elif c.to == "nanogpt":
        files = export_nanogpt(loaded, tokenizer, path, c.weights_dtype)
        print(f"wrote {', '.join(files)} to {path}: nanoGPT's sample.py takes it as --out_dir")
        if "meta.pkl" in files:
            name = loaded.config.get("dataset", "NAME")
            there = os.path.join("data", name, "meta.pkl")  # an absolute path is it alone
            print(f"its sample.py looks for the characters in {there}: copy it there")
    else:
        if c.to == "hf_code":
            use_cache = not differs_with_cache(loaded.model.eval())
            if not use_cache:
                print("edited so that a cache gives other results: written with use_cache=false")
            name = export_with_code(loaded, tokenizer, path, c.weights_dtype, use_cache)
            name = f"{name} with trust_remote_code=True"
        else:
            name = export_hugging_face(loaded, tokenizer, path, c.weights_dtype)
        print(f"wrote {path}: transformers.{name}, or here {shlex.quote(f'--init_from={path}')}")


if __name__ == "__main__":
    run(main)
