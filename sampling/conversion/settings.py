"""Command-line settings of sampling/convert.py."""

import dataclasses
from typing import Any, Literal

from ddpm_sa.settings.ranges import Count, Fraction, check_ranges

KindName = Literal["ddpm_tf", "pesser", "openai", "diffusers", "lucidrains", "edm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Command-line settings of sampling/convert.py.

    Attributes:
        source: A .pt, .pth, .ckpt or .bin file of torch.save (weights only), a .safetensors, or an
            .npz. It may also be the first argument, without the flag.
        output_dir: The model folder to create; it must not exist, or be empty.
        image_size: Height and width of the images; diffusers' config.json and the names of edm say
            it.
        kind: ddpm_tf, pesser, openai, diffusers, lucidrains or edm; auto detects it from the names.
        entry: Where the weights are in a file with those of several networks, such as ema or
            state_dict.model: the name of an entry, or a prefix of names.
        network_config: For diffusers: the network's config.json, if it is not next to the weights.
        objective: For lucidrains, required: what the network was trained to predict.
        preconditioning: For edm, required: edm (EDMPrecond) or vp (VPPrecond).
        num_heads: For openai: attention heads; or give num_head_channels. This and the following
            are flags of OpenAI's programs.
        num_head_channels: For openai: channels of each head.
        num_heads_upsample: For openai: attention heads on the way up, if they are others.
        use_new_attention_order: For openai: as in training.
        noise_schedule: For openai: linear (also if unset) or cosine. It and the settings below are
            for diffusers too, where there is no scheduler_config.json. It and diffusion_steps are
            for lucidrains too, where the file has no betas.
        diffusion_steps: For openai: number of training timesteps.
        rescale_timesteps: For openai, required unless diffusion_steps is 1000: whether the network
            was given t · 1000 / diffusion_steps (improved-diffusion's default) or t
            (guided-diffusion's). In the first case the model keeps the 1000 timesteps for which
            this is an integer.
        predict_xstart: For openai: whether the network predicts the image instead of the noise.
        sigma_small: If the variance was not learned: whether the variance of a step is the
            posterior's (as for the paper's 256 x 256 images) or beta (as for its CIFAR-10).
        dropout: For openai: of the training, for training the network further.
        num_channels: For openai: like those below, the weights say it, and it is compared with
            them.
        num_res_blocks: For openai, compared with the weights.
        attention_resolutions: For openai, compared with the weights.
        class_cond: For openai, compared with the weights.
        learn_sigma: For openai, compared with the weights.
        use_scale_shift_norm: For openai, compared with the weights.
        resblock_updown: For openai, compared with the weights.
        use_fp16: For openai: like those below, about the training; noted in the model card.
        use_kl: For openai, noted in the model card.
        rescale_learned_sigmas: For openai, noted in the model card.
    """

    source: str
    output_dir: str
    image_size: Count | None = None
    kind: Literal["auto", KindName] = "auto"
    entry: str | None = None
    network_config: str | None = None
    objective: Literal["pred_noise", "pred_x0", "pred_v"] | None = None
    preconditioning: Literal["edm", "vp"] | None = None
    num_heads: Count | None = None
    num_head_channels: Count | None = None
    num_heads_upsample: Count | None = None
    use_new_attention_order: bool = False
    noise_schedule: Literal["linear", "cosine"] | None = None
    diffusion_steps: Count = 1000
    rescale_timesteps: bool | None = None
    predict_xstart: bool = False
    sigma_small: bool = False
    dropout: Fraction | None = None
    num_channels: Count | None = None
    num_res_blocks: Count | None = None
    attention_resolutions: str | None = None
    class_cond: bool | None = None
    learn_sigma: bool | None = None
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    use_fp16: bool | None = None
    use_kl: bool | None = None
    rescale_learned_sigmas: bool | None = None

    def __post_init__(self) -> None:
        check_ranges(self)

    def non_defaults(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}


COMMON = {"source", "output_dir", "image_size", "kind", "entry"}
"""Settings that apply to all kinds."""

PROCESS = {
    *("noise_schedule", "diffusion_steps", "rescale_timesteps", "predict_xstart", "sigma_small"),
}
"""Those that describe the diffusion process."""

ARCHITECTURE = {
    *("num_channels", "num_res_blocks", "attention_resolutions", "class_cond", "learn_sigma"),
    *("use_scale_shift_norm", "resblock_updown"),
}
"""OpenAI's flags that the weights say too."""

HEADS = {"num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order"}
TRAINING = {"dropout", "use_fp16", "use_kl", "rescale_learned_sigmas"}
