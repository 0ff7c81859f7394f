"""Restore images with a model of images alone: samples of what a measurement leaves possible.

    python sampling/restore.py --model runs/mnist/model --task superres --factor 4 \\
        --image small.png --num_images 8 --sigma 0.05 --output_dir out

Writes samples (000000-000.png: image 0, sample 0), their mean (000000-mean.png), their standard
deviation (000000-std.npy), the measurement (000000-measurement.npy), restoration.png, and
restore.json, which records how to repeat it. docs/restoration.md says when to use which method.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm_sa.cli import parse, run_program
from ddpm_sa.data.resize import Fit
from ddpm_sa.errors import advise_out_of_memory, require
from ddpm_sa.progress import show_progress
from ddpm_sa.restoration import LinearOperator, Restorer, check_adjoint
from ddpm_sa.restoration.base import Measurement, RestorationMethod
from ddpm_sa.settings.ranges import Count, Fraction, Index, NonNegative, Positive
from sampling.common.device import resolve_device
from sampling.common.image_files import read_images
from sampling.common.memory import SMALLER_BATCH, check_batch_fits
from sampling.common.model_loading import describe_environment, model_identity
from sampling.common.output_folder import hold_output_folder, require_matplotlib
from sampling.common.replaced_folder import ReplacedFolder
from sampling.common.sampler_settings import SamplerSettings
from sampling.figures.panels import save_figure
from sampling.figures.restoration import draw_restoration
from sampling.restoration.files import file_names, picture_of, read_measurements, save_restored
from sampling.restoration.summary import summarise
from sampling.restoration.tasks import (
    Downsampling,
    MethodName,
    PiGDMStep,
    Task,
    make_operator,
    make_restoration,
)

RECORD, FIGURE = "restore.json", "restoration.png"
FILE_NAME = re.compile(r"\d{6,}-(\d{3,}|mean|std|measurement)\.(png|npy)")
USED_BY: dict[str, tuple[str, set[str]]] = {
    "factor": ("task", {"superres"}),
    "downsampling": ("task", {"superres"}),
    "blur": ("task", {"deblur"}),
    "mask": ("task", {"inpaint", "mri"}),
    "acceleration": ("task", {"mri"}),
    "operator": ("task", {"custom"}),
    "pigdm_step": ("method", {"pigdm"}),
    "step_size": ("method", {"dps"}),
    "prior_weight": ("method", {"diffpir"}),
    "zeta": ("method", {"diffpir"}),
    "repeats": ("method", {"repaint"}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplerSettings):
    """Command-line settings of sampling/restore.py.

    Attributes:
        model: A model folder, such as runs/mnist/model, a run, a checkpoint, or a
            repository on the Hugging Face Hub.
        output_dir: Folder for the images: a new one, or that of an earlier restoration, which is
            replaced.
        task: What was measured: superres (fewer pixels), inpaint (some pixels), deblur (a Gaussian
            blur), colorize (grey), mri (some frequencies), custom (an operator of yours).
        image: The measurements, as in `--image a.png b.png`: pictures, or .npy files as this
            program writes them; with degrade, clean images.
        method: ddnm, pigdm, dps, diffpir or repaint (inpaint alone); docs/restoration.md compares
            them.
        num_images: Number of samples for each image.
        sigma: Standard deviation of the noise in the measurement, where images are in [-1, 1]: for
            8 bits, that in grey levels over 127.5.
        degrade: Measure clean images first, noise included.
        truth: Clean images to compare with, one for each image.
        fit: How clean images and masks of another size get the model's, as in training: crop, pad,
            stretch; by default they are refused.
        mask: A picture of the model's size, white where pixels are missing (inpaint), or where
            frequencies are, with frequency 0 in the centre (mri).
        factor: For superres: how many pixels of a side became one.
        downsampling: For superres: mean (of blocks) or bicubic.
        blur: For deblur: standard deviation in pixels.
        acceleration: For mri without a mask: each so-many-th column is known, and the central 8 %.
        operator: For custom: a LinearOperator of yours, or what makes one from the shape (C, H, W),
            as package.module:name.
        pigdm_step: For pigdm: the published step, or score, which any scheduler can take.
        step_size: For dps: the weight of the gradient, zeta' in the paper.
        prior_weight: For diffpir: how much to trust the model rather than the measurement, lambda
            in the paper.
        zeta: For diffpir: share of fresh noise in each step; null takes the scheduler's step.
        repeats: For repaint: how often each step is repeated.
        class_label: For a class-conditional network: the class of the images, by its name, or by
            its number where no class has that name; by default image i has class i modulo the
            number of classes.
        batch_size: Samples at once.
    """

    model: str
    output_dir: str
    task: Task
    image: list[str]
    method: MethodName = "pigdm"
    num_images: Count = 8
    sigma: NonNegative = 0.0
    degrade: bool = False
    truth: list[str] = dataclasses.field(default_factory=list)
    fit: Fit | None = None
    mask: str | None = None
    factor: Count = 4
    downsampling: Downsampling = "mean"
    blur: Positive = 1.0
    acceleration: Count = 4
    operator: str | None = None
    pigdm_step: PiGDMStep = "published"
    step_size: Positive = 1.0
    prior_weight: Positive = 1.0
    zeta: Fraction | None = 0.5
    repeats: Count = 10
    class_label: str | Index | None = None
    batch_size: Count = 8
    steps: Count = 100
    scheduler: str = "ddpm"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.image) > 0, "image=[] must name at least one file")
        require(
            self.task != "inpaint" or self.mask is not None,
            "task=inpaint needs a --mask, white where pixels are missing",
        )
        require(
            self.task != "custom" or self.operator is not None,
            "task=custom needs an --operator, as package.module:name",
        )
        require(
            len(self.truth) in (0, len(self.image)),
            f"{len(self.truth)} truths for {len(self.image)} images; give one for each",
        )

    def unused(self) -> dict[str, str]:
        unused = {
            name: f"{kind}={getattr(self, kind)} does not use it; {', '.join(sorted(users))} "
            f"{'does' if len(users) == 1 else 'do'}"
            for name, (kind, users) in USED_BY.items()
            if getattr(self, kind) not in users
        }
        if self.mask is not None:
            unused["acceleration"] = "the mask says which frequencies are known"
        if self.degrade:
            unused["truth"] = "with degrade, the images are the truth"
        if not (self.degrade or self.truth or self.mask):
            unused["fit"] = "it resizes clean images and masks, and measurements are neither"
        return unused

    def make_operator(self, shape: tuple[int, int, int]) -> LinearOperator:
        """The operator of the task, for images of this shape."""
        return make_operator(
            self.task,
            shape,
            factor=self.factor,
            downsampling=self.downsampling,
            blur=self.blur,
            mask=self.mask,
            acceleration=self.acceleration,
            fit=self.fit,
            operator=self.operator,
        )

    def make_restoration(self) -> RestorationMethod:
        """The method with its numbers."""
        return make_restoration(
            self.method,
            pigdm_step=self.pigdm_step,
            step_size=self.step_size,
            prior_weight=self.prior_weight,
            zeta=self.zeta,
            repeats=self.repeats,
        )

    def title(self) -> str:
        """Of the figure."""
        return f"{self.task}, σ = {self.sigma:g}: {self.num_images} samples by {self.method}"


@advise_out_of_memory(SMALLER_BATCH)
def main() -> None:
    settings = parse(Settings)
    require_matplotlib()
    with hold_output_folder(settings.output_dir):
        restore(settings)


def restore(settings: Settings) -> None:
    """Restore the images, and replace the restoration that the folder holds, if any."""
    pipeline = settings.open(settings.model)
    image_format, device = pipeline.image_format, resolve_device(settings.device)
    operator = settings.make_operator(image_format.shape)
    adjoint, restoration = check_adjoint(operator), settings.make_restoration()
    files = settings.image if settings.degrade else settings.truth
    truth = read_images(files, image_format, settings.fit) if files else None
    condition = pipeline.condition(range(len(settings.image)), settings.class_label)
    record: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "model": model_identity(pipeline),
        "environment": describe_environment(settings.model, device),
        "adjoint": adjoint._asdict(),
    }
    total = len(settings.image) * settings.num_images
    check_batch_fits(pipeline, settings.batch_size, total, device)
    method = settings.make_method(pipeline.to(device))
    restorer = Restorer(pipeline=pipeline, method=method, seed=settings.seed)
    if settings.degrade and truth is not None:
        y = restorer.degrade(truth, operator, settings.sigma)
    else:
        y = read_measurements(settings.image, operator, image_format)
    restorer.check(Measurement(operator, y, settings.sigma), restoration)
    folder = ReplacedFolder(Path(settings.output_dir), RECORD, FILE_NAME, "restoration")
    names = file_names(len(y), settings.num_images, image_format.suffix)
    folder.earlier_images(names)  # refuses another folder before the work, not after it

    show_progress(pipeline, settings.task)
    samples = restorer.restore(
        y,
        operator,
        restoration,
        settings.sigma,
        settings.num_images,
        batch_size=settings.batch_size,
        condition=condition,
    )
    record["summary"] = summary = summarise(y, samples, truth, operator)
    figure = draw_restoration(
        picture_of(y, operator), samples, truth, image_format.value_range, settings.title()
    )
    with folder.replace(record, names):
        save_restored(folder.folder, y, samples, image_format)
        save_figure(figure, folder.folder / FIGURE)
    print(f"adjoint checked: <A x, y> = {adjoint.measured:.6g}, <x, A^T y> = {adjoint.adjoint:.6g}")
    for path, row in zip(settings.image, summary, strict=True):
        print(f"{path}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    print(f"{total} images made: {folder.folder / FIGURE}")


if __name__ == "__main__":
    run_program(main)
