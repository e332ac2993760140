"""Networks that this project does not build, told by their keys, so that they are refused by their own name."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# Keys -> what they belong to, and what can be done. The first that is found is said.
KINDS = (
    (
        r"\.lora_[AB]\.|\.lora_(down|up)\.|\.base_layer\.",
        "LoRA adapters beside their network (peft): merge them where they were made, model.merge_and_unload(), and save that",
    ),
    (
        r"(^|\.)rope_embed\.|(^|\.)storage_tokens$|rope_embeddings\.|attn\.rope",
        "a DINOv3 or EVA network, whose positions rotate",
    ),
    (
        r"attn\.rel_pos_[hw]$",
        "the image encoder of SAM or MedSAM (attention in windows, positions relative by row and column)",
    ),
    (r"(^|\.)trunk\.blocks\.\d+\.attn\.qkv|image_encoder\.trunk\.", "the image encoder of SAM 2 (Hiera)"),
    (
        r"(^|\.)dist_token$|(^|\.)distillation_token$",
        "a distilled DeiT, which has a second class token: take the DeiT that was trained without distillation",
    ),
    (
        r"layers\.\d+\.ffn\.layers\.0\.0\.|(^|\.)layers\.\d+\.ln1\.",
        "a ViT of MMPretrain in its own names: rename the keys to timm's (layers -> blocks, ln1 -> norm1, ln2 -> norm2, "
        "ffn.layers.0.0 -> mlp.fc1, ffn.layers.1 -> mlp.fc2, patch_embed.projection -> patch_embed.proj)",
    ),
    (
        r"\.mlp\.w12\.|\.mlp\.weights_in\.",
        "a DINOv2 with SwiGLU (ViT-g): this project has no encoder of that kind or size",
    ),
    (r"layers\.\d+\.blocks\.\d+\.(attn|attention)\.", "a Swin transformer"),
    (r"(^|\.)norm_pre\.(weight|bias)$", "a ViT of CLIP, which has a norm before its blocks"),
    (r"(^|\.)attn_pool\.", "a ViT that pools its tokens by attention (SigLIP)"),
    (r"(^|\.)blocks_token_only\.", "a CaiT"),
    (
        r"encoder\.layer\.\d+\..*lambda_1$|encoder\.relative_position_bias\.",
        "a BEiT in Hugging Face's names",
    ),
    (r"(visual\.transformer\.resblocks|vision_model\.encoder\.layers)\.\d+\.", "a CLIP or SigLIP network"),
    (r"(^|\.)layer\.\d+\.attention\.q_proj\.", "a DINOv3 network in Hugging Face's names, whose positions rotate"),
    (r"blocks\.\d+\.attn\.q_proj\.", "an EVA network"),
    (r"(^|\.)layer[1-4]\.\d+\.(se|se_module|eca)\.", "a ResNet with squeeze and excitation (SE-ResNet)"),
    (r"stages\.\d+\.(blocks|layers)\.\d+\.(conv_dw|dwconv|depthwise_conv)|downsample_layers\.", "a ConvNeXt"),
    (
        r"(^|\.)conv1\.\d\.weight$|(^|\.)stem\.\d\.weight$",
        "a ResNet with a stem of three convolutions (ResNet-C or -D)",
    ),
    (r"(^|\.)bottom_up\.res[2-5]\.|(^|\.)res[2-5]\.\d\.conv1\.", "a ResNet of Detectron2 in its own names"),
    (r"stages\.\d+\.blocks\.\d+\.conv1\.weight$", "a ResNetV2 (BiT)"),
    (r"encoder\.stages\.\d+\.\d+\.convs\.|conv_blocks_context\.", "a network of nnU-Net"),
    (r"(^|\.)_?conv_stem\.weight$", "an EfficientNet"),
    (r"features\.denseblock1\.", "a DenseNet"),
    (r"(^|\.)features\.\d+\.(block\.)?\d*\.?(conv\.)?\d*\.?weight$", "a VGG, MobileNet or EfficientNet"),
    (r"Mixed_\dx|Conv2d_1a", "an Inception network"),
    (r"(^|/)Transformer/encoderblock_", "a ViT in JAX's names"),
)


def kind_of(keys: Iterable[str]) -> str | None:
    """What network these keys belong to, in words; None for one that is not known."""
    text = list(keys)
    for pattern, kind in KINDS:
        if any(re.search(pattern, key) for key in text):
            return kind
    return None


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
