"""UNet.from_pretrained takes what UNet2DModel's takes, and does the same."""

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, DDPMScheduler, ModelMixin, UNet2DModel
from safetensors.torch import load_file

from ddpm_sa import Pipeline
from ddpm_sa.errors import UserError
from ddpm_sa.models.load_options import LoadOptions
from ddpm_sa.models.unet import UNet
from tests.models.test_loading import edit_config, saved_by_diffusers
from tests.support.reference import SMALL, assert_same_weights, error_of_each_image, randomise_

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
# Large enough for the fused upsampling, whose kernel is made from the weight of a convolution.
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
T = torch.tensor([3, 741])
NO_QUANTISER = r"cannot be loaded: .*(GPU|bitsandbytes)"  # of the two it needs one is missing here
BOTH_WAYS = pytest.mark.parametrize("low_cpu_mem_usage", [True, False])


def predict(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(X, T).sample


def test_there_is_no_option_of_diffusers_that_is_not_taken() -> None:
    source = inspect.getsource(ModelMixin.from_pretrained)
    theirs = set(re.findall(r"kwargs\.pop\(\s*\"(\w+)\"", source))
    assert {"device_map", "low_cpu_mem_usage", "torch_dtype"} < theirs
    ours = set(LoadOptions.__annotations__) | set(
        inspect.signature(UNet.from_pretrained).parameters
    )
    # Earlier versions of diffusers read the weights of JAX and archives in the DDUF format too.
    assert theirs - {"from_flax", "dduf_entries"} <= ours


# Options of loading


def test_shards_of_a_variant_open_by_their_earlier_names(tmp_path: Path) -> None:
    """As diffusers before 0.31 named them."""
    theirs = randomise_(UNet2DModel(**SMALL))
    theirs.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    index = tmp_path / f"{WEIGHTS}.index.fp16.json"

    def earlier(text: str) -> str:
        return re.sub(r"\.fp16(-\d+-of-\d+)\.safetensors", r"\1.fp16.safetensors", text)

    for shard in tmp_path.glob("*.fp16-*.safetensors"):
        shard.rename(tmp_path / earlier(shard.name))
    (tmp_path / f"{WEIGHTS}.fp16.index.json").write_text(earlier(index.read_text()))
    index.unlink()
    with pytest.warns(FutureWarning, match="serialization format"):
        assert_same_weights(UNet.from_pretrained(tmp_path, variant="fp16"), theirs)


@pytest.mark.parametrize("use_safetensors", [None, True, False])
def test_use_safetensors_chooses_between_two_files(
    use_safetensors: bool | None, tmp_path: Path
) -> None:
    networks = [randomise_(UNet2DModel(**SMALL), seed) for seed in (0, 1)]
    for network, safe in zip(networks, (True, False), strict=True):
        network.save_pretrained(tmp_path, safe_serialization=safe)
    loaded = UNet.from_pretrained(tmp_path, use_safetensors=use_safetensors)
    assert_same_weights(loaded, networks[use_safetensors is False])


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_device_map_may_be_one_device(device_map: Any, tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path)
    ours = UNet.from_pretrained(tmp_path, device_map=device_map)
    assert_same_weights(ours, theirs)
    assert ours.hf_device_map == {"": torch.device("cpu")} or ours.hf_device_map == {"": "cpu"}
    assert torch.equal(predict(ours), predict(UNet.from_pretrained(tmp_path)))


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "20KB"}], ids=str)
def test_modules_on_disk_are_loaded_when_they_are_called(
    saving: dict[str, Any], tmp_path: Path
) -> None:
    """The values agree to the rounding of another order of sums, with and without offloading."""
    randomise_(UNet2DModel(**SMALL)).save_pretrained(tmp_path / "model", **saving)
    names = [name for name, _ in UNet2DModel(**SMALL).named_children()]
    offloaded = ("down_blocks", "mid_block", "up_blocks", "time_embedding")
    device_map = {name: "disk" if name in offloaded else "cpu" for name in names}
    outputs = []
    for loader in (UNet, UNet2DModel):
        folder = tmp_path / loader.__name__
        unet = loader.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=str(folder)
        )
        assert unet.up_blocks[0].upsamplers[0].conv.weight.device.type == "meta"
        outputs.append(predict(unet))
    assert (error_of_each_image(*outputs) < 1e-5).all()


@pytest.mark.filterwarnings(  # diffusers leaves the files to the garbage collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_disable_mmap_and_parallel_shards_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = saved_by_diffusers(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for place in ("whole", "shards"):
        assert_same_weights(UNet.from_pretrained(tmp_path / place, disable_mmap=True), theirs)
    monkeypatch.setattr("diffusers.models.modeling_utils.HF_ENABLE_PARALLEL_LOADING", True)
    assert_same_weights(UNet.from_pretrained(tmp_path / "shards"), theirs)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@BOTH_WAYS
def test_weights_are_cast_by_either_name(
    name: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    theirs = saved_by_diffusers(tmp_path)
    options: Any = {name: torch.bfloat16, "low_cpu_mem_usage": low_cpu_mem_usage}
    assert_same_weights(UNet.from_pretrained(tmp_path, **options), theirs.to(torch.bfloat16))


def test_arguments_of_the_network_replace_those_of_its_file(tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path)
    options: Any = {"dropout": 0.25, "sample_size": 32}
    ours, theirs = (c.from_pretrained(tmp_path, **options) for c in (UNet, UNet2DModel))
    assert ours.config.dropout == theirs.config.dropout == 0.25
    assert ours.config.sample_size == theirs.config.sample_size == 32
    assert ours.down_blocks[0].resnets[0].dropout.p == 0.25
    assert_same_weights(ours, theirs)


def test_the_loading_info_of_diffusers_comes_with_the_network(tmp_path: Path) -> None:
    theirs = saved_by_diffusers(tmp_path)
    ours, info = UNet.from_pretrained(tmp_path, output_loading_info=True)
    _, expected = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info == expected
    assert_same_weights(ours, theirs)


@BOTH_WAYS
def test_weights_of_another_shape_can_be_initialised_instead_of_refused(
    low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    theirs = saved_by_diffusers(tmp_path)
    options: Any = {"in_channels": 5, "low_cpu_mem_usage": low_cpu_mem_usage}
    with pytest.raises(
        ValueError, match=r"1 mismatched weights, conv_in\.weight first; .* ignore_m"
    ):
        UNet.from_pretrained(tmp_path, **options)
    torch.manual_seed(3)
    ours, info = UNet.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **options
    )
    assert [name for name, *_ in info["mismatched_keys"]] == ["conv_in.weight"]
    torch.manual_seed(3)
    new = UNet(**{**SMALL, "in_channels": 5})
    assert torch.equal(ours.conv_in.weight, new.conv_in.weight)
    for name, weight in theirs.state_dict().items():
        if name != "conv_in.weight":
            assert torch.equal(ours.state_dict()[name], weight), name
    assert ours(torch.zeros(1, 5, 8, 8), 3).sample.isfinite().all()


def test_a_pipeline_takes_the_options_of_its_network(tmp_path: Path) -> None:
    unet = randomise_(UNet(**SMALL, sample_size=8))
    Pipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    unet.to_diffusers().save_pretrained(tmp_path / "unet", variant="ema")
    pipeline = Pipeline.from_pretrained(
        tmp_path, variant="ema", torch_dtype=torch.bfloat16, low_cpu_mem_usage=False, dropout=0.5
    )
    assert pipeline.unet.dtype == torch.bfloat16
    assert pipeline.unet.config.dropout == 0.5
    assert_same_weights(pipeline.unet, unet.to(torch.bfloat16))
    assert Pipeline.from_pretrained(tmp_path, device_map="cpu").unet.hf_device_map
    for name in ("varient", "subfolder", "output_loading_info"):
        with pytest.raises(UserError, match=rf"^{name}: neither an option of from_pretrained nor"):
            Pipeline.from_pretrained(tmp_path, **{name: "ema"})


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto"}, r"UNet does not support `device_map='auto'`"),
        ({"device_map": "gpu9"}, r"the value needs to be a device name"),
        ({"device_map": "cpu", "low_cpu_mem_usage": False}, r"set `low_cpu_mem_usage=True`"),
        ({"device_map": {"": "disk"}}, r"Please provide an `offload_folder`"),
        ({"torch_dtype": "float16"}, r"^torch_dtype='float16' must be a torch\.dtype, such as"),
        ({"torch_dtype": torch.int8}, r"not a floating point dtype"),
        ({"proxies": {"https": "a:1"}}, r"^proxies must be None: .* reads HTTP_PROXY"),
        ({"use_safetensors": "yes"}, r"^use_safetensors='yes' must be True, False or None"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, NO_QUANTISER),
        ({"varient": "fp16"}, r"^varient: neither an option .*; the options are variant, use_saf"),
        ({"norm_num_groups": 5}, r"config\.json: .* divisible by norm_num_groups=5"),
        ({"num_class_embeds": 3}, r"1 missing weights, class_embedding\.weight first"),
        (
            {"variant": "fp16"},
            r"no file named .*\.fp16\.bin found .*; there are weights of no variant$",
        ),
        ({"use_safetensors": False}, r"no file named diffusion_pytorch_model\.bin found"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused_in_one_line(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved_by_diffusers(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        UNet.from_pretrained(tmp_path, **options)
    assert "\n" not in str(refusal.value)


def test_a_file_of_quantised_weights_is_left_to_the_quantiser_of_diffusers(tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path)
    edit_config(
        tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    with pytest.raises(UserError, match=NO_QUANTISER):
        UNet.from_pretrained(tmp_path)


def test_a_missing_variant_is_answered_with_those_there_are(tmp_path: Path) -> None:
    unet = UNet2DModel(**SMALL)
    unet.save_pretrained(tmp_path, variant="fp16")
    unet.save_pretrained(tmp_path, variant="ema", max_shard_size="20KB")
    with pytest.raises(UserError, match=r"; there are weights of variant='ema', variant='fp16'$"):
        UNet.from_pretrained(tmp_path)


@BOTH_WAYS
@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "20KB"}], ids=str)
@pytest.mark.parametrize("fault", ["missing", "unexpected", "mismatched"])
def test_faulty_weights_are_refused_however_they_are_read(
    fault: str, saving: dict[str, Any], low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    theirs = UNet2DModel(**SMALL)
    theirs.save_pretrained(tmp_path, **saving)
    changes = {"missing": {"num_class_embeds": 2}, "mismatched": {"in_channels": 4}}
    edit_config(tmp_path, **changes.get(fault, {"mid_block_type": None}))
    with pytest.raises(UserError, match=rf"\d+ {fault} weights, "):
        UNet.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


class Harm:
    """What writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.write_text, (self.trace, "")


@BOTH_WAYS
def test_pickled_code_is_not_run(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path)
    trace = tmp_path / "trace"
    weights = {**load_file(tmp_path / WEIGHTS), "harm": Harm(trace)}
    torch.save(weights, tmp_path / PICKLED)
    with pytest.raises(UserError, match=r"the weights in .* cannot be read"):
        UNet.from_pretrained(tmp_path, use_safetensors=False, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not trace.exists()
    torch.load(tmp_path / PICKLED, weights_only=False)
    assert trace.exists()  # it would have been run


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
    ],
    ids=["no folder", "no config", "no weights", "damaged weights"],
)
def test_missing_files_are_the_errors_of_diffusers_too(spoil: Any, tmp_path: Path) -> None:
    saved_by_diffusers(tmp_path / "model")
    spoil(tmp_path / "model")
    for loader in (UNet, UNet2DModel):
        with pytest.raises(OSError):  # noqa: PT011
            loader.from_pretrained(tmp_path / "model", local_files_only=True)
    with pytest.raises(UserError):
        UNet.from_pretrained(tmp_path / "model", local_files_only=True)
