"""ldm_dream: super-resolution with diffusion models trained with DREAM. The file to read first is
`training/train.py`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from ldm_dream import Upscaler`, loaded on use: `import ldm_dream.config.run` must not
    import torch.
    """
    if name == "Upscaler":
        from ldm_dream.upscaling.upscaler import Upscaler

        return Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
