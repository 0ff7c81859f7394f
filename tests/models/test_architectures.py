"""Which class of network a model folder holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddpm_sa import Pipeline
from ddpm_sa.checkpoints import edm_scheduler
from ddpm_sa.models.architectures import ARCHITECTURES, architecture_named
from ddpm_sa.models.families.song import SongUNet
from ddpm_sa.models.unet import UNet
from tests.models.families.test_song import SMALL


def test_the_classes_are_listed_by_their_names() -> None:
    assert set(ARCHITECTURES) == {"UNet", "LucidrainsUNet", "SongUNet"}
    assert architecture_named("SongUNet") is SongUNet


@pytest.mark.parametrize("name", ["UNet2DModel", "UNetUnconditionalModel", None, 3, ["SongUNet"]])
def test_every_other_name_is_read_as_a_unet(name: Any) -> None:
    assert architecture_named(name) is UNet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unet = SongUNet(**SMALL)
    Pipeline(unet, edm_scheduler(unet)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers_per_block": 50}, "the files of weights beside it have"),
        ({"block_out_channels": [8, -1]}, r"block_out_channels\[1\]=-1 must be a whole number"),
        ({"sigma_max": "large"}, "sigma_max='large' must be a finite number"),
        ({"preconditioning": ["edm"]}, r"preconditioning=\['edm'\] is unknown; known are edm, vp"),
        ({"heads": 2}, "config.json has heads, which SongUNet does not know"),
        ({"layers_per_block": 2}, "missing weights"),
        ({"_class_name": "UNet2DModel"}, r"which UNet does not know: it is of a 'UNet2DModel'"),
        ({"_class_name": ["SongUNet"]}, r"which UNet does not know: it is of a \['SongUNet'\]"),
    ],
)
def test_values_of_a_folder_that_cannot_be_are_refused(
    change: dict, message: str, folder: Path
) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as refused:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(refused.value)
