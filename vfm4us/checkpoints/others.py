"""Networks that this project does not build, told by their keys, so that they are refused by their own name."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# Patterns, each of which some key has, and what such keys belong to with what can be done. The first that fits is said.
KINDS: tuple[tuple[str | tuple[str, ...], str], ...] = (
    (
        r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$",
        "the state of an optimizer, not of a network: give the file that was saved with it",
    ),
    (
        r"(^|\.)_?flat_param",
        "parameters that FSDP has flattened: save them with StateDictType.FULL_STATE_DICT, or get_model_state_dict of "
        "torch.distributed.checkpoint with full_state_dict=True",
    ),
    (
        r"\.lora_[AB]\.|\.lora_(down|up)\.|\.base_layer\.",
        "LoRA adapters beside their network (peft): merge them where they were made, model.merge_and_unload(), and save that",
    ),
    # ---- transformers
    (
        r"(^|\.)rope_embed\.|(^|\.)storage_tokens$|rope_embeddings\.|attn\.rope",
        "a DINOv3 or EVA network, whose positions rotate",
    ),
    (r"attn\.(pool|norm)_[qkv]\.|(^|\.)pos_encoding\.", "an MViT (attention that pools)"),
    (
        r"attn\.rel_pos_[hw]$",
        "the image encoder of SAM or MedSAM (attention in windows, positions relative by row and column)",
    ),
    (
        r"(^|\.)trunk\.blocks\.\d+\.proj\.|image_encoder\.trunk\.|(^|\.)pos_embed_window$",
        "the image encoder of SAM 2 (Hiera)",
    ),
    ((r"(^|\.)blocks\.\d+\.proj\.weight$", r"(^|\.)blocks\.\d+\.attn\.qkv\."), "a Hiera"),
    (
        r"(^|\.)dist_token$|(^|\.)distillation_token$",
        "a distilled DeiT, which has a second class token: take the DeiT that was trained without distillation",
    ),
    (
        r"layers\.\d+\.ffn\.layers\.0\.0\.|(^|\.)layers\.\d+\.ln1\.",
        "a ViT of MMPretrain in its own names: rename the keys to timm's (layers -> blocks, ln1 -> norm1, ln2 -> norm2, "
        "ffn.layers.0.0 -> mlp.fc1, ffn.layers.1 -> mlp.fc2, patch_embed.projection -> patch_embed.proj)",
    ),
    (r"(^|\.)patch_embedding\.patch_embeddings\.", "a ViT of MONAI in its own names"),
    (r"(^|\.)patch_embed\.backbone\.", "a ViT behind a convolutional network (a hybrid)"),
    (r"attn\.gating_param$", "a ConViT"),
    (r"rel_pos\.mlp\.", "a ViT whose relative positions come from a small network (timm's relpos)"),
    ((r"(^|\.)cls_token$", r"(^|\.)blocks\.\d+\.attn\.norm\."), "a BEiT-3, which has norms within its blocks' parts"),
    (r"blocks\.\d+\.attn\.[qk]_norm\.", "a ViT that normalises queries and keys"),
    (r"\.mlp\.fc1_[gx]\.|\.mlp\.ffn_ln\.", "an EVA network"),
    (
        r"\.mlp\.w12\.|\.mlp\.weights_in\.",
        "a DINOv2 with SwiGLU (ViT-g): this project has no encoder of that kind or size",
    ),
    (
        r"layers\d?\.\d+\.blocks\.\d+\.(attn|attention)\.|features\.\d+\.\d+\.attn\.relative_position",
        "a Swin transformer",
    ),
    (r"(^|\.)norm_pre\.(weight|bias)$", "a ViT of CLIP, which has a norm before its blocks"),
    (r"(^|\.)attn_pool\.", "a ViT that pools its tokens by attention (SigLIP)"),
    (r"(^|\.)blocks_token_only\.", "a CaiT"),
    (
        r"encoder\.layer\.\d+\..*lambda_1$|encoder\.relative_position_bias\.",
        "a BEiT in Hugging Face's names",
    ),
    (r"(visual\.transformer\.resblocks|vision_model\.encoder\.layers)\.\d+\.", "a CLIP or SigLIP network"),
    (r"(^|\.)attnpool\.", "a ResNet of CLIP, which pools by attention"),
    (r"(^|\.)layer\.\d+\.attention\.q_proj\.", "a DINOv3 network in Hugging Face's names, whose positions rotate"),
    (r"blocks\.\d+\.attn\.q_proj\.", "an EVA network"),
    (r"(^|/)Transformer/encoderblock_", "a ViT in JAX's names"),
    # ---- ResNet's relatives
    (r"(^|\.)stage[234]\.\d+\.branches\.", "an HRNet"),
    (r"(^|\.)layer1\.0\.convs\.\d\.", "a Res2Net"),
    (r"(^|\.)layer1\.0\.conv2\.(fc1|radix)", "a ResNeSt (split attention)"),
    (r"(^|\.)layer1\.0\.conv\d\.paths\.", "an SKNet (kernels of several sizes)"),
    (r"(^|\.)layer[1-4]\.\d+\.(se|se_module|eca)\.", "a ResNet with squeeze and excitation (SE-ResNet)"),
    (
        (r"(^|\.)(conv1|stem)\.\d\.weight$", r"(^|\.)layer1\.0\.conv1\.weight$"),
        "a ResNet with a stem of three convolutions (ResNet-C or -D)",
    ),
    (r"(^|\.)bottom_up\.res[2-5]\.|(^|\.)res[2-5]\.\d\.conv1\.", "a ResNet of Detectron2 in its own names"),
    (r"stages\.\d+\.blocks\.\d+\.conv1\.weight$", "a ResNetV2 (BiT)"),
    (r"trunk_output\.block\d|(^|\.)s1\.b1\.conv1\.", "a RegNet"),
    # ---- other convolutional networks
    (r"stages\.\d+\.blocks\.\d+\.xca\.", "an EdgeNeXt"),
    (
        (r"stages\.\d+\.blocks\.\d+\.conv_dw\.", r"stages\.\d+\.blocks\.\d+\.mlp\.fc1\."),
        "a ConvNeXt",
    ),
    ((r"downsample_layers\.", r"stages\.\d+\.\d+\.dwconv\."), "a ConvNeXt"),
    (r"stages\.\d+\.layers\.\d+\.dwconv\.", "a ConvNeXt in Hugging Face's names"),
    (r"features\.\d+\.\d+\.layer_scale$", "a ConvNeXt of torchvision"),
    (r"encoder\.stages\.\d+\.\d+\.convs\.|conv_blocks_context\.", "a network of nnU-Net"),
    (r"(^|\.)_conv_stem\.weight$", "an EfficientNet"),
    ((r"(^|\.)conv_stem\.weight$", r"(^|[^\d.]\.)bn2\.weight$"), "an EfficientNet or a MobileNetV2"),
    (r"(^|\.)conv_stem\.weight$", "a MobileNetV3, or a relative of it"),
    (r"features\.denseblock1\.", "a DenseNet"),
    ((r"features\.\d+\.\d+\.block\.\d", r"features\.[78]\.0\.weight$"), "an EfficientNet of torchvision"),
    (r"(^|\.)(features|backbone|body)\.(\d+\.)+block\.\d\.\d\.", "a MobileNetV3 of torchvision"),
    (r"(^|\.)features\.\d+\.conv\.\d\.", "a MobileNetV2 of torchvision"),
    (r"(^|\.)features\.\d+\.squeeze\.", "a SqueezeNet"),
    (r"Mixed_\dx|Conv2d_1a|inception3a\.|(^|\.)features\.\d+\.branch\d|mixed_\da\.", "an Inception network"),
    ((r"(^|\.)features\.0\.weight$", r"(^|\.)features\.\d\.weight$"), "a VGG or an AlexNet"),
    (r"(^|\.)stage2\.0\.branch1\.", "a ShuffleNet"),
    (r"(^|\.)block1\.rep\.", "an Xception"),
)


def kind_of(tensors: Mapping[str, Tensor]) -> str | None:
    """What network these tensors belong to, in words; None for one that is not known."""
    if any(value.ndim == 5 for value in tensors.values()):
        return "a network for video or volumes (kernels over three axes)"
    text = "\n".join(tensors)
    for patterns, kind in KINDS:
        needed = (patterns,) if isinstance(patterns, str) else patterns
        if all(re.search(pattern, text, re.MULTILINE) for pattern in needed):
            return kind
    return None


def transformer_variant(tensors: Mapping[str, Tensor]) -> str | None:
    """A ViT's relative, told by what it lacks: it has the names of a ViT or a BEiT and computes something else."""
    relative = any("relative_position_bias_table" in key for key in tensors)
    if not relative and any(re.search(r"blocks\.\d+\.(gamma_1|attn\.q_bias)$", key) for key in tensors):
        return "an EVA or DINOv3 network in timm's names, whose positions rotate, or a BEiT without relative positions"
    if "pos_embed" in tensors and "cls_token" not in tensors:
        return "a ViT without a class token (I-JEPA, SigLIP, and others that take the mean of all tokens)"
    return None


def computes_otherwise(keys: Iterable[str]) -> list[str]:
    """What stands beside a ResNet and says that it computes something else than its own tensors show."""
    beside = r"(^|\.)(classifier\.0\.convs\.|classifier\.1\.running_mean$|aux_classifier\.0\.|decoder\.aspp\.)"
    return ["dilated stages, as DeepLab and FCN have"] if any(re.search(beside, key) for key in keys) else []


def resnet_variant(tensors: Mapping[str, Tensor]) -> str | None:
    """A ResNet's relative, told by its shapes: it has the names of a ResNet and computes something else."""
    second = tensors.get("layer1.0.conv2.weight")
    if second is not None and second.ndim == 4 and "layer1.0.conv3.weight" in tensors:
        if second.shape[0] != second.shape[1]:
            return "a ResNeXt (convolutions in groups)"
        if second.shape[0] != 64:
            return f"a wide ResNet ({second.shape[0]} channels where a ResNet50 has 64)"
    for stage in (1, 2):
        pooled = tensors.get(f"layer{stage}.0.downsample.1.weight")
        if pooled is not None and pooled.ndim == 4:
            return "a ResNet-D (its shortcuts average before they convolve)"
    if "bn1.weight" in tensors and not any(key.endswith("running_mean") for key in tensors):
        return "a ResNet without running statistics (group norm, or batch norm frozen into scales)"
    return None
