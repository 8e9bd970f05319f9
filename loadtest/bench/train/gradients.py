"""Loss and gradients of low-rank pairs by PyTorch and transformers, from the GGUF weights of a tiny model.

`python gradients.py FOLDER` reads case.json, pairs.f32 and the model that case.json names, writes gradients.f32 in the
order of pairs.f32 and prints {"loss", "versions"}. The model's classes are the library's own; the weights are put into
them here, because the loader of GGUF files knows only published shapes. Computed in float64, but for the norms,
the softmax and the rotation, which the library itself does in float32. Each example runs alone, so a packed batch that
leaks between its examples differs.
"""
import json, math, os, sys
import numpy as np
import torch
import transformers
from gguf import GGUFReader

folder = sys.argv[1]
case = json.load(open(os.path.join(folder, "case.json")))
m = case["model"]
architecture, heads, kv_heads, head_dim = m["architecture"], m["heads"], m["kvHeads"], m["headDim"]
reader = GGUFReader(m["path"])
fields = {name: field.contents() for name, field in reader.fields.items()}
weights = {t.name: torch.from_numpy(np.array(t.data)).double() for t in reader.tensors}
theta = fields[f"{architecture}.rope.freq_base"]

common = dict(
    vocab_size=m["vocabulary"], hidden_size=m["embedding"], intermediate_size=m["feedForward"], num_hidden_layers=m["layers"],
    num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, max_position_embeddings=m["context"],
    rms_norm_eps=fields[f"{architecture}.attention.layer_norm_rms_epsilon"], tie_word_embeddings=m["tied"], use_cache=False,
    attn_implementation="eager", pad_token_id=None, bos_token_id=None, eos_token_id=None,
)
if architecture == "gemma3":
    local = fields["gemma3.rope.freq_base_swa"]
    config = transformers.Gemma3TextConfig(
        **common, query_pre_attn_scalar=head_dim, sliding_window=m["slidingWindow"], sliding_window_pattern=m["slidingPattern"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": theta},
                         "sliding_attention": {"rope_type": "default", "rope_theta": local}})
    model = transformers.Gemma3ForCausalLM(config)
else:
    kinds = {"llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
             "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
             "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)}
    make, causal = kinds[architecture]
    model = causal(make(**common, rope_parameters={"rope_type": "default", "rope_theta": theta}))
model = model.double().eval()


def to_hf(x, count):
    """llama files hold the rows of q and k as (head, pair, half); the library has (head, half, pair)."""
    return x.reshape(count, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)


def to_gguf(x, count):
    return x.reshape(count, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(x.shape)


permuted = {"attn_q": heads, "attn_k": kv_heads} if m["ropePermuted"] else {}
linear = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
          "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
norms = {"attn_norm": "input_layernorm", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
norms |= {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"} \
    if architecture == "gemma3" else {"ffn_norm": "post_attention_layernorm"}
# The library adds 1 to gemma3's norm weights; the file holds them with it.
minus = 1.0 if architecture == "gemma3" else 0.0
state = {"model.embed_tokens.weight": weights.pop("token_embd.weight"), "model.norm.weight": weights.pop("output_norm.weight") - minus}
state["lm_head.weight"] = state["model.embed_tokens.weight"] if m["tied"] else weights.pop("output.weight")
for name in list(weights):
    _, layer, part, kind = name.split(".")
    value = weights.pop(name)
    if part in permuted and kind == "weight":
        value = to_hf(value, permuted[part])
    state[f"model.layers.{layer}.{linear.get(part) or norms[part]}.{kind}"] = value - (minus if part in norms else 0.0)
model.load_state_dict(state, strict=True)
for p in model.parameters():
    p.requires_grad_(False)


class Pair(torch.nn.Module):
    def __init__(self, base, a, b):
        super().__init__()
        self.base, self.a, self.b = base, torch.nn.Parameter(a), torch.nn.Parameter(b)

    def forward(self, x):
        return self.base(x) + case["scale"] * (x @ self.a.T @ self.b.T)


flat = torch.from_numpy(np.fromfile(os.path.join(folder, "pairs.f32"), "<f4")).double()
at, pairs = 0, []
for p in case["pairs"]:
    a = flat[at : at + case["rank"] * p["in"]].reshape(case["rank"], p["in"]).clone()
    at += a.numel()
    b = flat[at : at + p["out"] * case["rank"]].reshape(p["out"], case["rank"]).clone()
    at += b.numel()
    if p["target"] in permuted:
        b = to_hf(b, permuted[p["target"]]).clone()
    block, name = linear[p["target"]].split(".")
    parent = getattr(model.model.layers[p["layer"]], block)
    pair = Pair(getattr(parent, name), a, b)
    setattr(parent, name, pair)
    pairs.append((p["target"], pair))

loss = torch.zeros((), dtype=torch.float64)
for start, end in zip(case["starts"], case["starts"][1:]):
    ids = torch.tensor([case["tokens"][start:end]])
    logits = model(input_ids=ids).logits[0, :-1]
    assert logits.dtype == torch.float64
    w = torch.tensor(case["weights"][start : end - 1], dtype=torch.float64)
    loss = loss + (w * torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")).sum()
(loss / case["divisor"]).backward()
assert math.isfinite(loss.item())

with open(os.path.join(folder, "gradients.f32"), "wb") as out:
    for target, pair in pairs:
        b = to_gguf(pair.b.grad, permuted[target]) if target in permuted else pair.b.grad
        for g in (pair.a.grad, b):
            out.write(g.contiguous().numpy().astype("<f4").tobytes())
print(json.dumps({"loss": loss.item(), "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}))
