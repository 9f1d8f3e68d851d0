"""vqgan_f4 and vqgan_taming: our VQGAN with the official weights under their own names."""

import torch
import torch.nn.functional as F

from golden.reading import Case
from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.networks.vqgan import VQGAN

BETA = 0.25  # VectorQuantizer2's default, which both cases use


def run(case: Case, io: dict, weights: dict) -> dict:
    # words about the original; what it quantises where, the names of the outputs say
    case["construct"].known("class", "quantizer", "loss")
    model = VQGAN(config(case["construct"]["kwargs"]))
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("loss.")})
    h = model.encode(io["in.image"])
    quantized = model.quantize(h)
    z_q = quantized.h
    out = {
        "encoder_out": model.encoder(io["in.image"]),
        "h": h,
        "z_q": z_q,
        "indices": quantized.indices,
        "codebook_entry": model.quantize(z_q).h,
        "decode": model.decode(z_q, quantize=False),
        "decode_h": model.decode(h),
        "decode_zq_force_not_quantize": model.decode(z_q, quantize=False),
        "decode_h_force_not_quantize": model.decode(h, quantize=False),
        "forward": model(io["in.image"])[0],
    }
    out |= losses(model, h.detach(), io)
    out["emb_loss"] = out["old_VectorQuantizer.loss"] = out["codebook_loss.legacy_True"]
    share = F.one_hot(quantized.indices, len(model.quantize.embedding.weight)).float().mean(0)
    out["old_VectorQuantizer.perplexity"] = torch.exp(-(share * (share + 1e-10).log()).sum())
    return {k: v.detach() for k, v in out.items()}


def losses(model: VQGAN, h: torch.Tensor, io: dict) -> dict:
    """`legacy` puts beta on the codebook's term, the paper on the commitment's."""
    out, codes = {}, model.quantize.embedding.weight
    for legacy, (codebook, commitment) in {"True": (BETA, 1.0), "False": (1.0, BETA)}.items():
        h = h.detach().requires_grad_()
        q = model.quantize(h)
        loss = codebook * q.codebook_loss + commitment * q.commitment_loss
        name = f"codebook_loss.legacy_{legacy}"
        out[name] = loss
        out[f"{name}.grad_h"], out[f"{name}.grad_codebook"] = torch.autograd.grad(loss, (h, codes))
    if "in.cotangent" in io:
        (out["straight_through.grad_h"],) = torch.autograd.grad(
            model.quantize(h).h, h, io["in.cotangent"]
        )
    return out


def config(kwargs: Case) -> VQGANConfig:
    """Constructor arguments of the official classes -> our config."""
    dd = kwargs["ddconfig"]
    dd.only(double_z=False, in_channels=3, out_ch=3, padding_mode="zeros")
    dd.known("dropout")  # off when it is only evaluated
    blocks = dd["num_res_blocks"]
    return VQGANConfig(
        ch=dd["ch"],
        ch_mult=tuple(dd["ch_mult"]),
        num_res_blocks=tuple(blocks) if isinstance(blocks, list) else blocks,
        attn_resolutions=tuple(dd["attn_resolutions"]),
        resolution=dd["resolution"],
        z_channels=dd["z_channels"],
        embed_dim=kwargs["embed_dim"],
        n_embed=kwargs["n_embed"],
    )
