"""Models on the hub, by the hub's own client, against a hub of the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load

from ddpm_sa import Pipeline, UNet
from tests.support.hub import local_hub
from tests.support.reference import SMALL, randomise_

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    Pipeline(randomise_(UNet(**SMALL | {"sample_size": 8})), DDPMScheduler()).save_pretrained(
        folder
    )
    return folder


def run(program: str, address: str, home: Path) -> subprocess.CompletedProcess:
    """A program as a user of that hub; the client reads its address when it is imported."""
    told = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | told | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"},
        timeout=300,
    )


def test_a_model_is_pushed_and_opened_by_us_and_by_diffusers(folder, tmp_path):
    with local_hub() as (address, repositories):
        pushed = run(
            f"""
from ddpm_sa import Pipeline
print(Pipeline.from_pretrained({str(folder)!r}).push_to_hub("me/digits", token="hf_none"))
""",
            address,
            tmp_path / "there",
        )
        assert pushed.stdout.strip() == f"{address}/me/digits", pushed.stderr[-2000:]
        files = repositories["me/digits"]
        opened = run(
            """
import json
from diffusers import DDPMPipeline
from ddpm_sa import Pipeline
ours, theirs = Pipeline.from_pretrained("me/digits"), DDPMPipeline.from_pretrained("me/digits")
sums = [sum(w.double().abs().sum().item() for w in p.unet.parameters()) for p in (ours, theirs)]
print(json.dumps(sums))
""",
            address,
            tmp_path / "here",
        )
    assert {"model_index.json", "images.json", "README.md", "unet/config.json"} <= files.keys()
    weights = load(files["unet/diffusion_pytorch_model.safetensors"])
    saved = Pipeline.from_pretrained(folder).unet.state_dict()
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    total = sum(weight.double().abs().sum().item() for weight in weights.values())
    assert opened.returncode == 0, opened.stderr[-2000:]
    assert json.loads(opened.stdout) == [pytest.approx(total, rel=1e-12)] * 2


def test_only_the_weights_that_are_loaded_are_fetched(tmp_path):
    name = "diffusion_pytorch_model"
    configs = {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"}
    shards = {
        f"unet/{name}.safetensors.index.json",
        f"unet/{name}-00001-of-00002.safetensors",
        f"unet/{name}-00002-of-00002.safetensors",
    }
    fetched_and_left = {
        "me/safetensors": (
            configs | {f"unet/{name}.safetensors"},
            {
                f"unet/{name}.fp16.safetensors",
                f"unet/{name}.bin",
                f"vae/{name}.safetensors",
                "text_encoder/model.safetensors",
            },
        ),
        "me/bin": (configs | {f"unet/{name}.bin"}, {f"unet/{name}.fp16.bin"}),
        "me/shards": (configs | shards, {f"unet/{name}-00001-of-00002.bin"}),
        "me/root": ({"config.json", f"{name}.safetensors"}, {f"{name}.bin"}),
    }
    program = f"""
import json
from ddpm_sa.model_folder import local_folder
fetched = {{}}
for repo in {list(fetched_and_left)!r}:
    folder = local_folder(repo)
    files = (path for path in folder.rglob("*") if path.is_file())
    fetched[repo] = [path.relative_to(folder).as_posix() for path in files]
folder = local_folder("me/configs", weights=False)
files = (path for path in folder.rglob("*") if path.is_file())
fetched["me/configs"] = [path.relative_to(folder).as_posix() for path in files]
print(json.dumps(fetched))
"""
    # What fine-tuning reads before it builds the network.
    fetched_and_left["me/configs"] = (configs, {f"unet/{name}.safetensors", f"unet/{name}.bin"})
    with local_hub() as (address, repositories):
        for repo, (fetched, left) in fetched_and_left.items():
            repositories[repo] = dict.fromkeys(fetched | left, b"{}")
        done = run(program, address, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for repo, files in json.loads(done.stdout).items():
        assert set(files) == fetched_and_left[repo][0], repo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("Pipeline.from_pretrained(FOLDER).push_to_hub('me/digits')", "could not be pushed"),
        ("Pipeline.from_pretrained('me/digits')", "not found on the Hugging Face Hub"),
    ],
)
def test_a_hub_that_is_not_reached_is_told_in_words(does, says, folder, tmp_path):
    program = f"""
from ddpm_sa import Pipeline
try:
    {does.replace("FOLDER", repr(str(folder)))}
except ValueError as error:
    print(error)
"""
    done = run(program, "http://127.0.0.1:9", tmp_path)
    assert done.stdout.startswith("me/digits "), done.stderr[-500:]
    assert says in done.stdout
