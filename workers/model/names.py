"""What a family's checkpoints call their tensors, as data. The defaults are Llama's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

ExpertsLayout = Literal["each", "stacked", "interleaved", "mxfp4"]
_MOST_DENSE_LAYERS = 16
"""Before the first one with experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """Modules, without `.weight` and `.bias`. An empty name is a module that the family does not have.

    prefixes: what may stand before all names but that of the head, the usual one first: base models, and decoders inside
    larger models, are saved under others. heads: full names of the head, likewise. Names of a layer's parts follow `layer`,
    which takes the layer's index.
    *_down, *_up: of attention by latents; without a latent for queries, theirs is qkv[0].
    qkv, gate_up: one name each for q, k and v (gate and up), or one for all. qkv_grouped: that one holds, for each kv head
    in turn, its queries, its key and its value. transposed: matrices are [in, out].
    """

    prefixes: tuple[str, ...] = ("model.", "")
    embedding: str = "embed_tokens"
    positions: str = ""
    embedding_norm: str = ""
    project_in: str = ""
    project_out: str = ""
    layer: str = "layers.{}."
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = ""
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_grouped: bool = False
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    sinks: str = "self_attn.sinks"
    query_down: str = "self_attn.q_a_proj"
    query_down_norm: str = "self_attn.q_a_layernorm"
    query_up: str = "self_attn.q_b_proj"
    kv_down: str = "self_attn.kv_a_proj_with_mqa"
    kv_down_norm: str = "self_attn.kv_a_layernorm"
    kv_up: str = "self_attn.kv_b_proj"
    attention_output: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = ""
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    correction: str = "mlp.gate.e_score_correction_bias"
    experts_layout: ExpertsLayout = "each"
    expert_gate_up: tuple[str, str] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    expert_down: str = "mlp.experts.{}.down_proj"
    experts_gate_up: str = "mlp.experts.gate_up_proj"
    experts_down: str = "mlp.experts.down_proj"
    shared_gate_up: tuple[str, ...] = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
    shared_down: str = "mlp.shared_experts.down_proj"
    shared_gate: str = "mlp.shared_expert_gate"
    final_norm: str = "norm"
    heads: tuple[str, ...] = ("lm_head",)
    transposed: bool = False

    @property
    def shared(self) -> WeightNames:
        """Of the experts that all tokens go through, as names of an MLP."""
        return replace(self, gate_up=self.shared_gate_up, down=self.shared_down)

    def fitted(self, has: Callable[[str], bool]) -> WeightNames:
        """These names with that prefix and that head first under which a checkpoint has them, and its layout of experts."""
        prefixes = sorted(self.prefixes, key=lambda prefix: not has(f"{prefix}{self.embedding}.weight"))
        return replace(
            self,
            prefixes=tuple(prefixes),
            heads=tuple(sorted(self.heads, key=lambda head: not has(f"{head}.weight"))),
            experts_layout=self._fitted_layout(f"{prefixes[0]}{self.layer}{self.experts_gate_up}", has),
        )

    def _fitted_layout(self, name: str, has: Callable[[str], bool]) -> ExpertsLayout:
        """name: of all experts' gate and up, which takes the layer's index."""
        in_layers = [name.format(index) for index in range(_MOST_DENSE_LAYERS)]
        whole = any(has(name) for name in in_layers)
        if self.experts_layout == "each" and whole:
            return "stacked"
        if self.experts_layout == "interleaved" and not whole and any(has(f"{name}_blocks") for name in in_layers):
            return "mxfp4"
        return self.experts_layout
