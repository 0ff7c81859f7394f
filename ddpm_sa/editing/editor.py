"""Image editing by adding noise up to some level and denoising from there.

An `Editor` holds a pipeline, a method and a seed. Images are tensors in [-1, 1], (B, C, H, W),
float32. A level is a timestep of the training; the scheduler starts at its nearest one below.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_sa.condition import Condition
from ddpm_sa.editing.base import Edits
from ddpm_sa.errors import UserError
from ddpm_sa.pipeline import INITIAL_NOISE, STEP_NOISE
from ddpm_sa.samplers.denoise import evaluating, scales
from ddpm_sa.samplers.method import Method, dry_run

LEVEL_NOISE = "editing: noise of a level"
VARIATION_NOISE = "editing: variation"
KNOWN_NOISE = "editing: noise of known pixels"
AGAIN_NOISE = "editing: a step back"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editor(Edits):
    """Its arguments are those of `Edits`."""

    def sdedit(
        self, images: Tensor, strength: float, *, condition: Condition | None = None
    ) -> Tensor:
        """Noise images to the level strength · T and denoise them (Meng et al. 2022).

        Args:
            images: Such as coarse sketches.
            strength: From 0, which returns the images, to 1, which keeps almost nothing of them.
            condition: As `Pipeline.condition` makes it for that many images.

        Raises:
            ValueError: If the strength or the images' shape is out of range.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"strength={strength} must lie between 0 and 1")
        x_0 = self.checked(images)
        if strength == 0:
            return images
        start = self.start(round(strength * (self.timesteps - 1)))
        x_t = start.a * x_0 + start.s * self.noise(LEVEL_NOISE, range(len(x_0)))
        return self.denoised_from(x_t, start, condition)

    def interpolate(
        self,
        one: Tensor,
        other: Tensor,
        level: int,
        weights: Sequence[float],
        *,
        condition: Condition | None = None,
    ) -> Tensor:
        """Mix two images at a level: (1 - w) x_t + w x_t' (Ho et al. 2020, figure 8).

        Each image has noise of its own; the noise drawn afterwards is the same for all weights.

        Args:
            one, other: Two images, (1, C, H, W).
            level: t, at which they are mixed. 0 mixes pixels.
            weights: The weight of the second image, one per result.

        Returns:
            (len(weights), C, H, W).
        """
        start = self.start(level)
        pair = torch.cat([self.checked(one), self.checked(other)])
        pair = start.a * pair + start.s * self.noise(LEVEL_NOISE, range(2))
        w = torch.tensor(list(weights)).reshape(-1, 1, 1, 1).to(pair)
        x_t = (1 - w) * pair[:1] + w * pair[1:]
        return self.denoised_from(x_t, start, condition, noise_of=[0] * len(w))

    def variations(
        self, index: int, count: int, level: int, *, condition: Condition | None = None
    ) -> Tensor:
        """Images that share the latent x_t of image `index`, denoised independently (figure 7).

        Args:
            index: Of the seed, as sampling numbers images.
            count: How many.
            level: t, from which on each has noise of its own.

        Raises:
            ValueError: If the method draws no noise: all would be one image.
        """
        if not dry_run(self.method, self.pipeline.scheduler).stochastic:
            raise UserError(
                f"{self.method} draws no noise, so images that share a latent are one image; use "
                "ddpm, or ddim with eta above 0"
            )
        start = self.start(level)

        def noise(number: int) -> Tensor:
            if number < start.number:
                return self.noise(STEP_NOISE, [index] * count, number)
            return self.noise(VARIATION_NOISE, range(count), number)

        x_T = self.noise(INITIAL_NOISE, [index] * count)
        return self.denoised(x_T, noise, condition)

    def progressive(
        self, indices: Sequence[int], count: int, *, condition: Condition | None = None
    ) -> Tensor:
        """The predicted image at several steps of the denoising, first to last (figure 6).

        Returns:
            (len(indices), count, C, H, W); fewer than count if there are fewer steps.
        """
        steps = self.num_evaluations
        wanted = {round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)}
        kept, x = [], torch.empty(0)
        walk = self.pipeline.denoise(indices, self.method, self.seed, condition=condition)
        with evaluating(self.pipeline.unet), self.progress(steps) as bar:
            for step in walk:
                bar.update()
                if step.number in wanted:
                    kept.append(self.cropped(step.x_0))
                x = step.x_next
        kept[-1] = self.cropped(x)
        return torch.stack(kept, dim=1)

    def inpaint(
        self,
        images: Tensor,
        unknown: Tensor,
        repeats: int = 10,
        *,
        condition: Condition | None = None,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """RePaint: generate the unknown pixels, keep the others exactly (Lugmayr et al. 2022).

        At each step the known pixels are noised to its level. The step is then repeated, after
        adding one step of noise, so that both parts become consistent; the number of evaluations
        grows by the factor `repeats`.

        Args:
            images: The images; their unknown pixels do not matter.
            unknown: Which pixels to generate, (H, W), bool.
            repeats: How often each step is taken.
            indices: Whose noise each image has; its own place among the images, if None.

        Raises:
            ValueError: If the mask has another size, covers everything or nothing, or the scheduler
                is not ddpm or ddim, the only ones that can go back a step.
        """
        if self.method.scheduler not in ("ddpm", "ddim"):
            raise UserError(
                f"scheduler={self.method.scheduler!r} cannot go back a step, which inpainting "
                "needs; use ddpm or ddim"
            )
        if repeats < 1:
            raise UserError(f"repeats={repeats} must be at least 1")
        x_0 = self.checked(images)
        free = self.checked_mask(unknown)
        scheduler = self.method.make_scheduler(self.pipeline.scheduler)
        levels = [scales(scheduler, number, t) for number, t in enumerate(scheduler.timesteps)]
        levels.append((torch.ones(()), torch.zeros(())))
        who = range(len(x_0)) if indices is None else indices
        x = self.noise(INITIAL_NOISE, who)
        condition = self.condition_of(len(x_0), condition)
        one_step = self.pipeline.stepper(self.method, condition)
        total = len(scheduler.timesteps) * repeats
        with evaluating(self.pipeline.unet), self.progress(total) as bar:
            for number in range(len(scheduler.timesteps)):
                (a, _), (a_next, s_next) = levels[number], levels[number + 1]
                for again in range(repeats):
                    moment = number * repeats + again
                    if again:  # q(x_t | x_t-1): as much noise as lies between the two levels
                        kept = a / a_next
                        back = self.noise(AGAIN_NOISE, who, moment)
                        x = kept * x + (1 - kept**2).sqrt() * back
                    noise = self.noise(STEP_NOISE, who, moment)
                    x = one_step(x, lambda _, noise=noise: noise, start=number).x_next
                    known = a_next * x_0 + s_next * self.noise(KNOWN_NOISE, who, moment)
                    x = torch.where(free, x, known)
                    bar.update()
        return torch.where(free, x, x_0)[..., : images.shape[-2], : images.shape[-1]].cpu()

    def invert(self, images: Tensor, *, condition: Condition | None = None) -> Tensor:
        """DDIM inversion: the noise x_T that deterministic DDIM turns into nearly these images.

        The DDIM update in the other direction (Song et al. 2021, section 4.3), with eps taken at
        the lower of the two levels; the error falls as the steps grow. Nothing is clipped.

        Returns:
            x_T, of the size that the network sees.
        """
        x, pipeline = self.checked(images), self.pipeline
        condition = self.condition_of(len(x), condition)
        scheduler = self._ddim().make_scheduler(pipeline.scheduler)
        denoiser, a, s = pipeline.prediction, torch.ones(()), torch.zeros(())
        eps = None
        progress = self.progress(len(scheduler.timesteps))
        with evaluating(pipeline.unet), torch.no_grad(), progress as bar:
            for number, t in reversed(list(enumerate(scheduler.timesteps))):
                a_t, s_t = scales(scheduler, number, t)
                if eps is None:  # no eps belongs to a clean image: that of the lowest level
                    eps = denoiser.eps(self.evaluated(x, t, condition), x, a_t, s_t)
                x = a_t * (x - s * eps) / a + s_t * eps
                a, s = a_t, s_t
                eps = denoiser.eps(self.evaluated(x, t, condition), x, a, s)
                bar.update()
        return x

    def reconstruct(self, x_T: Tensor, *, condition: Condition | None = None) -> Tensor:
        """The images that deterministic DDIM makes from the noise of `invert`."""
        editor = dataclasses.replace(self, method=self._ddim())
        return editor.denoised(x_T, lambda _: torch.empty(0), condition)

    def _ddim(self) -> Method:
        options = {"clip_sample": False, "timestep_spacing": "leading"}
        return Method(steps=self.method.steps, scheduler="ddim", scheduler_options=options)
