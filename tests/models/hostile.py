"""Folders that ask for their code to be run in every way a folder can, and that say when it did.

Run as a script, it opens every family's folder, counts, and prints; its standard input is what a user would type:

    yes | python tests/models/hostile.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "grounded"), str(HERE / "checkpoints"), str(HERE)]

AUTO = "AutoConfig AutoModel AutoModelForCausalLM AutoModelForImageTextToText AutoProcessor AutoImageProcessor".split()
TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}"


def poison(folder, mark):
    """Put code, and everything that names it, into a folder and all folders in it; returns the number of ways."""
    ways = 0
    for place in [folder, *(path for path in Path(folder).rglob("*") if path.is_dir())]:
        code = f"open({str(mark)!r}, 'a').write(__file__ + '\\n')\nclass Evil:\n    pass\n"
        for name in ("evil.py", "unimed_shim.py", "modeling.py", "__init__.py", "sitecustomize.py", "transformers.py"):
            (place / name).write_text(code)
            ways += 1
        (place / "chat_template.jinja").write_text(TEMPLATE.replace("MARK", str(mark)))
        for path in place.glob("*.json"):
            if path.name in ("tokenizer.json", "vocab.json", "special_tokens_map.json") or "index" in path.name:
                continue
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                ways += _poison(values, path.name, place, mark)
                path.write_text(json.dumps(values))
        for name in ("processor_config.json", "preprocessor_config.json", "generation_config.json"):
            if not (place / name).exists() and (place / "config.json").exists():
                values = {"processor_class": "Evil"} if name != "generation_config.json" else {}
                ways += _poison(values, name, place, mark)
                (place / name).write_text(json.dumps(values))
        (place / "custom_generate").mkdir(exist_ok=True)
        (place / "custom_generate" / "generate.py").write_text(code)
    return ways


def _poison(values, name, place, mark):
    ways = 2
    if name == "tokenizer_config.json":
        values["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        values["chat_template"] = TEMPLATE.replace("MARK", str(mark))
        return ways
    values["auto_map"] = {auto: "evil.Evil" for auto in AUTO}
    if name == "generation_config.json":
        values["custom_generate"] = str(place)
        return ways
    for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        values[key] = "owner/kernel"
    values |= {"use_kernels": True, "trust_remote_code": True, "kernel_config": {"x": "owner/kernel:Layer"}}
    for inner in values.values():
        if isinstance(inner, dict) and "model_type" in inner:
            ways += _poison(inner, name, place, mark)
    text = values.get("model_cfg", {}).get("text_cfg")
    if text is not None:
        text["tokenizer_kwargs"] = {"trust_remote_code": True, "code_revision": "main", "tokenizer_type": "bert"}
        text["hf_tokenizer_name"] = text["hf_model_name"] = str(place)
        values["model_cfg"]["vision_cfg"]["timm_model_pretrained"] = True
        ways += 4
    return ways


def families():
    """Name -> (maker of a folder, user of the opened model)."""
    import numpy as np
    from test_weights import FAMILIES

    image = np.zeros((40, 40, 3), np.uint8)

    def use(model):
        if hasattr(model, "zero_shot"):
            model.zero_shot(image, ["a", "b"])
        elif hasattr(model, "language_model"):
            model.predict(image, "what is it", max_new_tokens=2)
        else:
            model.predict(image, "liver")

    return {name: (lambda folder, make=make: make().save_pretrained(folder), use) for name, make in FAMILIES.items()}


def published():
    """Name -> maker of a published folder; `unimed.load` converts it."""
    from published_folders import publish

    def qwen(folder):
        publish(folder)

    def internlm(folder):
        publish(folder, "internlm2")

    return {"unibiomed on qwen2": qwen, "unibiomed on internlm2": internlm}


def outcomes(root, which=None):
    """Open all; {name: "opened" or the error}, questions asked, ways tried."""
    import unimed

    os.environ["UNIMED_CACHE"] = str(root / "cache")
    results, ways = {}, 0
    jobs = {name: pair for name, pair in families().items()}
    jobs |= {name: (make, families()["grounded"][1]) for name, make in published().items()}
    for name, (make, use) in jobs.items():
        if which is not None and name not in which:
            continue
        folder = root / name.replace(" ", "_")
        make(folder)
        ways += poison(folder, root / "mark")
        try:
            use(unimed.load(folder, device="cpu"))
            results[name] = "opened"
        except (ValueError, OSError) as error:
            results[name] = f"{type(error).__name__}: {error}"
    return results, ways


def main():
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    results, ways = outcomes(root)
    for name, result in results.items():
        print(f"{name}: {result[:150]}")
    ran = (root / "mark").read_text().splitlines() if (root / "mark").exists() else []
    print(f"code run {len(ran)} of {ways}")
    return 1 if ran else 0


if __name__ == "__main__":
    sys.exit(main())
