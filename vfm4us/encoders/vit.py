"""timm's ViTs and BEiTs."""

import contextlib
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vfm4us.encoders.base import Encoder, Tokens


class Transformer(Encoder):
    """What ViT and BEiT share: one map, a stage for each block, and tokens."""

    first_convolution, head = "patch_embed.proj.weight", "head"
    tokens: Tokens

    def build(self) -> nn.Module:
        spec = self.spec
        width, depth, heads = self.sizes[spec.name]
        self.width, self.channels, self.strides = width, (width,), (spec.patch,)
        self.stages = ("stem", *(f"block{i + 1}" for i in range(depth)))
        self.tokens = Tokens(spec.patch, 1 + spec.registers, spec.image // spec.patch)
        return self.transformer(
            img_size=spec.image,
            patch_size=spec.patch,
            in_chans=spec.in_channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=spec.heads or heads,
            global_pool="token" if spec.norm == "token" else "avg",
        )

    def transformer(self, **common: Any) -> nn.Module:
        """timm's network with these options and the family's own."""
        raise NotImplementedError

    def pyramid(self, x: Tensor) -> list[Tensor]:
        maps = self.body.forward_intermediates(self.normalize(x), indices=1, norm=True, intermediates_only=True)
        return [maps[0]]

    def stage_of(self, name: str) -> int:
        if block := re.match(r"blocks\.(\d+)\.", name):
            return int(block[1]) + 1
        return len(self.stages) - 1 if name.startswith(("norm.", "fc_norm.")) else 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[SimpleNamespace]:
        """What enters the last block."""
        seen = SimpleNamespace(tensor=None)
        handle = self.body.blocks[-1].register_forward_pre_hook(
            lambda _module, inputs: setattr(seen, "tensor", inputs[0])
        )
        try:
            yield seen
        finally:
            handle.remove()

    def as_map(self, x: Tensor) -> Tensor:
        patches = x[:, self.tokens.prefix :]
        side = math.isqrt(patches.shape[1])  # of a square image
        return patches.transpose(1, 2).unflatten(2, (side, side))

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        spec = self.spec
        return f"{spec.name}_patch{spec.patch}_224", {"img_size": spec.image} if spec.image != 224 else {}


class ViT(Transformer):
    """Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929), DINOv2's with layer scale and registers among them."""

    sizes: ClassVar = {  # width, depth, heads
        "vit_tiny": (192, 12, 3),
        "vit_small": (384, 12, 6),
        "vit_base": (768, 12, 12),
        "vit_large": (1024, 24, 16),
        "vit_huge": (1280, 32, 16),
    }

    def transformer(self, **common: Any) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        spec = self.spec
        return VisionTransformer(
            **common,
            fc_norm=spec.norm == "mean",
            final_norm=spec.norm != "none",
            init_values=1e-5 if spec.layer_scale else None,
            reg_tokens=spec.registers,
            no_embed_class=spec.registers > 0,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )

    def embed_tokens(
        self, x: Tensor, hidden: Tensor | None = None, mask_token: Any = None, kept: Tensor | None = None
    ) -> Tensor:
        body = self.body
        tokens = body.patch_embed(self.normalize(x))  # (N, rows, columns, width)
        if hidden is not None:
            tokens = torch.where(hidden.view(*tokens.shape[:3], 1), mask_token.to(tokens.dtype), tokens)
        tokens = body._pos_embed(tokens)
        if kept is not None:
            prefix = self.tokens.prefix
            chosen = tokens[:, prefix:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
            tokens = torch.cat([tokens[:, :prefix], chosen], dim=1)
        return body.norm(body.blocks(body.norm_pre(tokens)))

    def pool(self, tokens: Tensor) -> Tensor:
        return self.body.forward_head(tokens)

    def begin_as_mae(self) -> None:
        """Weights as MAE begins with them (uniform, by Xavier), and sine and cosine positions that are not trained.

        Weights that were read from a file stay, with their positions, which are not trained either.
        """
        from lightly.models.modules import MaskedVisionTransformerTIMM

        if self.report is None:
            MaskedVisionTransformerTIMM(self.body)  # initialises what it is given
        self.body.pos_embed.requires_grad = False

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        spec = self.spec
        if not spec.layer_scale:
            return super().timm_model()
        registers = f"_reg{spec.registers}" if spec.registers else ""
        return f"{spec.name}_patch{spec.patch}{registers}_dinov2", {"img_size": spec.image, "num_classes": 1000}


class BEiT(Transformer):
    """BEiT (Bao et al. 2021, arXiv 2106.08254), USFM's network: positions relative within a window of `spec.image` px."""

    sizes: ClassVar = {name.replace("vit", "beit"): ViT.sizes[name] for name in ("vit_base", "vit_large")}
    any_size = False

    def transformer(self, **common: Any) -> nn.Module:
        from timm.models.beit import Beit

        spec = self.spec
        body = Beit(
            **common,
            init_values=0.1,
            use_abs_pos_emb=spec.positions != "relative",
            use_rel_pos_bias=True,
        )
        if (spec.norm == "mean") != isinstance(
            body.norm, nn.Identity
        ):  # timm goes by the pooling; the norm is not drawn
            body.norm, body.fc_norm = body.fc_norm, body.norm
        if spec.norm == "none":
            body.norm = nn.Identity()
        return body


def write_attention_out(network: nn.Module) -> None:
    """Have timm's attention within `network` computed by two products and a softmax, not by one fused kernel."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
