"""Sizes for a tiny checkpoint of any family: fields of configurations by their names, and what a family needs beside that."""

import re
from typing import Any

VOCABULARY, HIDDEN, EXPERTS, TOP_K, LAYERS = 2048, 64, 8, 2, 3
SIZES: list[tuple[str, Any]] = [
    (r"vocab_size(_per_layer_input)?|text_vocab_size|ctc_vocab_size", VOCABULARY),
    (r"pad_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 0),
    (r"bos_token_id", 2),
    (
        r"hidden_size|d_model|n_embd|embed_dims?|(de|en)coder_hidden_size|out_hidden_size|output_dim|projection_dim|hidden_dim|n_state",
        HIDDEN,
    ),
    (r"(mm|text|thinker)_hidden_size", HIDDEN),
    (r"num_hidden_layers|n_layers|num_layers|(en|de)coder_layers|num_decoder_layers|depth|n_layer", LAYERS),
    (r"num_attention_heads|n_heads|num_heads|(en|de)coder_attention_heads|swa_num_attention_heads", 4),
    (r"linear_num_value_heads|index_n_heads|num_linear_heads", 4),
    (r"num_key_value_heads|swa_num_key_value_heads|linear_num_key_heads|num_kv_heads|kv_n_heads|num_global_key_value_heads", 2),
    (r"((swa|linear_key|linear_value|global|attention|index|linear)_)?head_dim|swa_v_head_dim|kv_channels|d_kv|head_[kv]_dim", 16),
    (r"(q|kv|o|qk)_lora_rank", 16),
    (r"qk_(rope|nope)_head_dim", 8),
    (r"v_head_dim|qk_head_dim", 16),
    (r"(moe_)?num_experts|num_local_experts|n_routed_experts|num_routed_experts|n_experts|moe_num_primary_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts|num_selected_experts|n_activated_experts|router_topk", TOP_K),
    (r"n_group|num_expert_group|topk_group|n_groups_moe|moe_n_group", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|(moe_)?first_k_dense", 1),
    (r".*intermediate_size.*|d_ff|(encoder_|decoder_)?ffn_dim|(expert_|moe_)?ffn_hidden_size|ffn_size", 32),
    (r"max_position_embeddings|model_max_length|max_seq_len|max_source_positions|original_max_position_embeddings", 512),
    (r"sliding_window|window_size|attention_chunk_size", 32),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_d_state|ssm_state_size|mamba_state_size|mamba_chunk_size|chunk_size", 16),
    (r"mamba_n_groups|n_groups", 1),
    (r"mamba_dt_rank", 4),
    (r"mamba_expand|expand", 2),
    (r"num_nextn_predict_layers|num_mtp_layers|mtp_num_(hidden_)?layers", 0),
    (r"initializer_range|init_std", 0.2),
    (r"index_topk", 8),
]
"""The first pattern that a field's name matches gives its value, never more than it has by itself."""
WHOLE = ("rope_parameters", "rope_scaling", "layer_types", "quantization_config", "id2label", "label2id", "compress_rates")
"""Tables that are not of sizes."""
BY_LAYER = ("layers_block_type", "moe_layers", "no_rope_layers", "hybrid_layer_pattern", "moe_layer_freq", "per_layer_config")
BY_LAYER += ("num_attention_heads_per_layer", "kv_source_layers", "indexer_types", "layer_rope_theta")
"""Lists with an entry a layer, which configurations make anew of the number of layers; so are `*layer_types`."""
OF_A_FILE = ("transformers_version", "architectures", "dtype", "_name_or_path")
"""Fields that tell of the file they were read from, in parts of a configuration too."""
NOT_OURS = ("model_type", "torch_dtype", "id2label", "label2id", "num_labels")
NOT_OURS += ("auto_map", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "problem_type")
NOT_OURS += ("_experts_implementation", "experts_implementation", "attn_implementation", "_attn_implementation")

SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_GEMMA = {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16}
_DOTS_VISION = {**SPARSE, "num_experts_per_tok": 2, "adapter_in_dim": 64, "adapter_out_dim": 64}
_MUSE_AUDIO = {"num_hidden_layers": 2, "patch_sizes": [4, 4], "hidden_sizes": [16, 16], "depths": [1, 1], "out_hidden_size": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**LINEAR, **SPARSE, "head_dim": 16},
    "beam": {**SPARSE, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_ocr2": {"text_config": {**SPARSE, "num_experts_per_tok": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "doge": {"is_moe": True, "num_experts": 16, "keep_window_size": 64},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": {
            **SPARSE,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "head_dim": 16,
            "kv_lora_rank": 16,
        },
        "vision_config": _DOTS_VISION,
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}, "moe_intermediate_size": [16, 16]}},
    "gemma4": {
        "text_config": {**_GEMMA, "enable_moe_block": True, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    },
    "diffusion_gemma": {"text_config": _GEMMA},
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}}},
    "glm5_next": {"text_config": {**SPARSE, **LINEAR, "index_kpool": 4, "linear_num_heads": 4}},
    "granitemoehybrid": {**LINEAR, "num_local_experts": 8, "num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 16, "eod_token_id": 0},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {**LINEAR, "linear_num_heads": 4, "linear_head_dim": 16},
    "laguna": SPARSE,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mistral4": {
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "head_dim": 8,
        "rope_parameters": {**_ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 512},
    },
    "muse_spark": {"audio_config": _MUSE_AUDIO, "projector_hidden_size": 64, "text_config": {"moe_hidden_size": 32}},
    "qwen3_5_moe": {"text_config": LINEAR},
    "qwen3_next": LINEAR,
    "qwen4_exp": {
        "text_config": {
            **LINEAR,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 32,
            "indexer_compress_ratio": 4,
            "hc_lowrank": 16,
        }
    },
    "qwen3_omni_moe": {
        "talker_config": {"text_config": {"shared_expert_intermediate_size": 16}, "accept_hidden_layer": 1, "spatial_merge_size": 2}
    },
    "step3p7": {
        "text_config": {
            **SPARSE,
            "layer_types": ["full_attention"] * 3,
            "sliding_window": 32,
            "n_routed_experts": 8,
            "moe_intermediate_size": 16,
            "share_expert_dim": 16,
        }
    },
}
"""What a family's configuration needs beside sizes."""


def shrunk(fields: dict[Any, Any]) -> dict[Any, Any]:
    """The fields of a configuration, and of those inside of it, with tiny sizes."""
    is_latent = "kv_lora_rank" in fields
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in BY_LAYER or (isinstance(value, list) and value and name.endswith("layer_types")):
            continue
        if not isinstance(name, str):  # a table of an architecture's own
            small[name] = value
        elif isinstance(value, dict) and name not in WHOLE:
            small[name] = shrunk(value)
        elif is_latent and name in ("head_dim", "num_key_value_heads", "qk_head_dim"):
            small |= _of_latent(name, value, fields)
        elif name == "qk_rope_head_dim" and value == 0:
            small[name] = 0
        else:
            small[name] = _sized(name, value)
    return {name: value for name, value in small.items() if name not in OF_A_FILE}


def _of_latent(name: str, value: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Multi-head latent attention: the size of a head follows from its parts."""
    if name == "head_dim":
        return {name: 8 if fields.get("qk_rope_head_dim") else value}
    return {name: 4} if name == "num_key_value_heads" else {}


def _sized(name: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name) and (is_number or name == "eos_token_id") and value is not None:
            is_token = name.endswith("_token_id")
            return value if not is_token and isinstance(size, int) and isinstance(value, int) and size > value else size
    if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
        return 3
    return value
