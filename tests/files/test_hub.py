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
from tests.support.hub import TOKEN, local_hub
from tests.support.reference import SMALL, randomise_

ROOT = Path(__file__).parents[2]


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
                *("pipeline.py", "unet/modeling.py", "scheduler/scheduler.py", "unet/a.pt"),
            },
        ),
        "me/bin": (configs | {f"unet/{name}.bin"}, {f"unet/{name}.fp16.bin"}),
        "me/mixed": (
            configs | {f"unet/{name}.fp16.safetensors", f"unet/{name}.bin"},
            {f"unet/{name}.fp16.bin"},
        ),
        "me/shards": (configs | shards, {f"unet/{name}-00001-of-00002.bin"}),
        "me/pickled": (configs | {f"unet/{name}.bin"}, {f"unet/{name}.safetensors"}),
        "me/neither": (configs, {f"unet/{name}.bin", f"unet/{name}.fp16.safetensors"}),
        "me/earlier": (
            configs
            | {
                f"unet/{name}.safetensors.fp16.index.json",
                f"unet/{name}-00001-of-00001.fp16.safetensors",
            },
            {f"unet/{name}-00001-of-00001.safetensors", f"unet/{name}.fp16.bin"},
        ),
        "me/root": ({"config.json", f"{name}.safetensors"}, {f"{name}.bin"}),
    }
    options = {
        "me/pickled": {"use_safetensors": False},
        "me/neither": {"use_safetensors": True},
        "me/earlier": {"variant": "fp16"},
    }
    program = f"""
import json
from ddpm_sa.model_folder import local_folder
fetched = {{}}
# What lies in the cache of another variant is not it.
local_folder("me/mixed", {{"variant": "fp16"}})
options = {options!r}
for repo in {list(fetched_and_left)!r}:
    folder = local_folder(repo, options.get(repo))
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


def test_a_network_is_pushed_with_the_options_of_diffusers_and_opens_in_both(tmp_path):
    """Also a download that was spoilt is fetched again, when that is asked for."""
    program = f"""
import json
import torch
from pathlib import Path
from diffusers import UNet2DModel
from huggingface_hub import HfApi
from ddpm_sa import UNet
from tests.support.reference import SMALL, randomise_
unet = randomise_(UNet(**SMALL))
told = []
create_commit = HfApi.create_commit
def commit(self, *arguments, **options):
    told.append([options["commit_message"], options["create_pr"]])
    return create_commit(self, *arguments, **options)
HfApi.create_commit = commit
pushed = {{"repo_id": "me/unet", "private": True, "token": "hf_none", "create_pr": False}}
unet.save_pretrained({str(tmp_path / "me/unet")!r}, push_to_hub=True, variant="fp16",
                     max_shard_size="20KB", commit_message="step 9", **pushed)
unet.push_to_hub("me/unet", token="hf_none", commit_message="step 10")
same = []
def compare(network):
    same.append(all(torch.equal(a, b) for a, b in zip(network.parameters(), unet.parameters())))
for cls in (UNet2DModel, UNet):
    compare(cls.from_pretrained("me/unet", variant="fp16"))
    compare(cls.from_pretrained("me/unet"))
cache = next(Path({str(tmp_path)!r}).glob("hub/*unet/blobs"))
for blob in cache.iterdir():
    if blob.stat().st_size > 10**5:
        blob.write_bytes(blob.read_bytes()[:9])
compare(UNet.from_pretrained("me/unet", force_download=True))
print(json.dumps([told, same]))
"""
    with local_hub() as (address, repositories):
        done = run(program, address, tmp_path)
        files = repositories["me/unet"]
    assert done.returncode == 0, done.stderr[-2000:]
    told, same = json.loads(done.stdout)
    assert told == [["step 9", False], ["step 10", False]]
    assert same == [True] * 5
    name = "diffusion_pytorch_model"
    assert {"config.json", "README.md", f"{name}.safetensors"} < files.keys()
    assert f"{name}.safetensors.index.fp16.json" in files
    assert json.loads(files["config.json"])["_class_name"] == "UNet2DModel"


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_revision_token_and_cache_are_options_of_both_ways_to_open(folder, tmp_path):
    """One process, since importing the libraries takes longer than what it does."""
    Pipeline.from_pretrained(folder).save_pretrained(tmp_path / "v2")
    later = Pipeline.from_pretrained(folder)
    later.unet.conv_in.bias.data.fill_(2.0)
    later.save_pretrained(tmp_path / "v2")
    program = f"""
import json, warnings
warnings.simplefilter("error")
import torch
from ddpm_sa import Pipeline, UNet
from sampling.common.model_loading import open_model
told, cache = {{}}, {{"cache_dir": {str(tmp_path / "cache")!r}}}
def first(name, open):
    try:
        unet = open()
        unet = getattr(unet, "unet", unet)
        told[name] = [unet.conv_in.bias[0].item(), str(unet.dtype)]
    except ValueError as error:
        told[name] = str(error)
for cls in (Pipeline, UNet):
    def open(repo, **options):
        return lambda: cls.from_pretrained(repo, **cache, **options)
    name = cls.__name__
    first(f"{{name}} main", open("me/digits"))
    first(f"{{name}} v2", open("me/digits", revision="v2"))
    first(f"{{name}} v9", open("me/digits", revision="v9"))
    first(f"{{name}} half", open("me/digits", torch_dtype=torch.bfloat16))
    first(f"{{name}} token", open("private/digits", token={TOKEN!r}))
    first(f"{{name}} no token", open("private/other", token=False))
    first(f"{{name}} kept", open("me/digits", revision="v2", local_files_only=True))
    first(f"{{name}} not kept", open("me/never", local_files_only=True))
first("--model", lambda: open_model("me/digits@v2"))
print(json.dumps(told))
"""
    with local_hub() as (address, repositories):
        for name in ("me/digits", "private/digits", "private/other"):
            repositories[name] = files_of(folder)
        repositories["me/digits@v2"] = files_of(tmp_path / "v2")
        done = run(program, address, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "deprecated" not in done.stderr
    told = json.loads(done.stdout)
    bias = Pipeline.from_pretrained(folder).unet.conv_in.bias
    main = [pytest.approx(bias[0].item()), "torch.float32"]
    for cls in ("Pipeline", "UNet"):
        assert told[f"{cls} main"] == told[f"{cls} token"] == main
        assert told[f"{cls} v2"] == told[f"{cls} kept"] == [2.0, "torch.float32"]
        assert told[f"{cls} v9"] == "me/digits has no revision 'v9'"
        half = [bias[0].bfloat16().item(), "torch.bfloat16"]
        assert told[f"{cls} half"] == half
        reasons = {
            "no token": "private/other is not a local folder, and the Hugging Face Hub has no such",
            "not kept": "me/never is not a local folder, and it was not downloaded before",
        }
        for name, reason in reasons.items():
            said = told[f"{cls} {name}"]
            assert said.startswith(reason)
            assert "\n" not in said
    assert told["--model"] == [2.0, "torch.float32"]
    assert (tmp_path / "cache").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("Pipeline.from_pretrained(FOLDER).push_to_hub('me/digits')", "could not be pushed"),
        ("Pipeline.from_pretrained('me/digits')", "the Hugging Face Hub cannot be reached"),
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
