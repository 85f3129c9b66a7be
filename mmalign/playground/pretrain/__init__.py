"""Train the playground's models from scratch: ``python -m mmalign.playground.pretrain --out FOLDER``.

``--model tiny-sdxl`` (the default): a VAE on rendered pictures, then the UNet with both text encoders on its latents
with the epsilon objective. ``--model tiny-sd3``: the MMDiT with its three text encoders on the latents of tiny-sdxl's
VAE with the flow-matching objective. Both with caption dropout for guidance. ``--model tiny-llava``: the vision tower
on dense labels, then projector and text model on descriptions and answers of a world with habits. All keep an
exponential moving average of the weights. Interrupted runs continue with the same command. Ends by writing the model's
folder in fp16 and how good it is by gold labels. ``--help`` lists the settings of the model given.
"""

from mmalign.playground.pretrain.frame import Progress
from mmalign.playground.pretrain.llava import LlavaSettings
from mmalign.playground.pretrain.run import pretrain
from mmalign.playground.pretrain.sd3 import FlowSettings
from mmalign.playground.pretrain.sdxl import Settings

__all__ = ["FlowSettings", "LlavaSettings", "Progress", "Settings", "pretrain"]
