"""The peer: HF transformers and PEFT, on the same GGUF weights (made dense, as its loader does) and the same tokens.

`python peer.py JOB.json` does what ours.ts does with the same job (see job.ts) and prints the same JSON lines.
"""
import json, os, random, resource, sys, time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import peft, torch, transformers
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

job = json.load(open(sys.argv[1]))
torch.manual_seed(job["seed"])
random.seed(job["seed"])
transformers.logging.set_verbosity_error()


def say(**facts):
    print(json.dumps(facts), flush=True)


def peak_mb():
    """Peak resident memory of this process. Linux: not what a parent had before exec, as getrusage would count it."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


folder, file = os.path.split(job["model"])
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, job["dtype"]))
MODULES = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj",
           "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
if job["method"] == "lora":
    config = LoraConfig(r=job["rank"], lora_alpha=job["scale"] * job["rank"], target_modules=list(MODULES.values()),
                        lora_dropout=0.0, task_type="CAUSAL_LM")
else:
    config = PrefixTuningConfig(num_virtual_tokens=job["prefixTokens"], task_type="CAUSAL_LM")
layers = model.config.num_hidden_layers
model = get_peft_model(model, config)
if job["recompute"]:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
if job.get("initialA"):
    flat, at = np.fromfile(job["initialA"], "<f4"), 0
    for layer in range(layers):
        block = model.base_model.model.model.layers[layer]
        for target, name in MODULES.items():
            a = getattr(block.self_attn if target.startswith("attn") else block.mlp, name).lora_A["default"].weight
            with torch.no_grad():
                a.copy_(torch.from_numpy(flat[at : at + a.numel()]).view_as(a))
            at += a.numel()
    assert at == flat.size
trained = [p for p in model.parameters() if p.requires_grad]
say(loaded=True, peakMb=peak_mb(), parameters=sum(p.numel() for p in trained),
    versions={"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__})

data = json.load(open(job["data"]))


def collate(examples, pad_to):
    width = max(pad_to, max(len(e["tokens"]) for e in examples))
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for k, e in enumerate(examples):
        n = len(e["tokens"])
        ids[k, :n] = torch.tensor(e["tokens"])
        mask[k, :n] = 1
        labels[k, e["prompt"] : n] = ids[k, e["prompt"] : n]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


optimiser = torch.optim.AdamW(trained, lr=job["learningRate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
model.train()
for step in range(job["steps"]):
    batch = [data["examples"][(step * job["batch"] + j) % len(data["examples"])] for j in range(job["batch"])]
    started = time.perf_counter()
    loss = model(**collate(batch, job["padTo"])).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, job["clipNorm"])
    optimiser.step()
    optimiser.zero_grad()
    say(step=step + 1, loss=loss.item(), gradientNorm=norm.item(), tokens=sum(len(e["tokens"]) for e in batch),
        seconds=time.perf_counter() - started)
say(done=True, peakMb=peak_mb())
