"""Make images with onnxruntime and numpy alone, from what sampling/export.py wrote.

    python examples/onnx_sampling.py --model out/model.onnx --output images.npy

The sampler is DDIM (Song et al. 2021, eq. 12 with eta = 0), with the settings that the file holds.
Image i of a seed is the one that `ddpm_sa.Pipeline` makes with that seed and as many steps.
"""

import argparse
import json
import zlib

import numpy as np
import onnxruntime


def sample(path: str, num_images: int, steps: int, seed: int, class_label: int = 0) -> np.ndarray:
    """Returns images as the training had them, (N, H, W, C), such as uint8 from 0 to 255."""
    network = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    texts = network.get_modelmeta().custom_metadata_map
    about = {name: json.loads(text) for name, text in texts.items()}
    images, scheduler, alphas_cumprod = about["images"], about["scheduler"], about["alphas_cumprod"]
    inputs = {i.name: np.float16 if "16" in i.type else np.float32 for i in network.get_inputs()}

    # Noise of each image's own: seed, purpose and index are hashed to a generator.
    shape, purpose = (images["channels"], *about["sample_size"]), zlib.crc32(b"sampling: x_T")
    seeds = [np.random.SeedSequence([seed, purpose, 2, i, 0]) for i in range(num_images)]
    x = np.stack([np.random.default_rng(s).standard_normal(shape, np.float32) for s in seeds])

    T = len(alphas_cumprod)
    timesteps = {
        "trailing": np.arange(T, 0, -T / steps).round() - 1,
        "leading": np.arange(steps)[::-1] * (T // steps) + scheduler.get("steps_offset", 0),
        "linspace": np.linspace(0, T - 1, steps).round()[::-1],
    }[scheduler["timestep_spacing"]].astype(int)
    for t in timesteps:
        feed = {
            "sample": x.astype(inputs["sample"]),
            "timestep": np.full(num_images, t, np.float32),
        }
        if "class_labels" in inputs:
            feed["class_labels"] = np.full(num_images, class_label)
        F = network.run(["out_sample"], feed)[0][:, : shape[0]].astype(np.float32)
        # Solve x = a x_0 + s eps and F = p x_0 + q eps, of which F is eps, x_0 or v.
        a, s = alphas_cumprod[t] ** 0.5, (1 - alphas_cumprod[t]) ** 0.5
        kinds = {"epsilon": (0, 1), "sample": (1, 0), "v_prediction": (-s, a)}
        p, q = kinds[scheduler["prediction_type"]]
        x_0, eps = (q * x - s * F) / (a * q - s * p), (a * F - p * x) / (a * q - s * p)
        if scheduler["clip_sample"]:
            x_0 = x_0.clip(-scheduler["clip_sample_range"], scheduler["clip_sample_range"])
        before = t - T // steps
        kept = alphas_cumprod[before] if before >= 0 else 1.0
        x = (kept**0.5 * x_0 + (1 - kept) ** 0.5 * eps).astype(np.float32)

    (height, width), (low, high) = images["size"], images["value_range"]
    values = (x[..., :height, :width].clip(-1, 1) + 1) * (high - low) / 2 + low
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[images["bit_depth"]]
    return (values if dtype == np.float32 else values.round()).astype(dtype).transpose(0, 2, 3, 1)


def read_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sample images from an ONNX file.")
    parser.add_argument("--model", required=True, help="what sampling/export.py wrote")
    parser.add_argument("--output", default="images.npy", help="where the array is saved")
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50, help="at most the training's timesteps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--class_label", type=int, default=0, help="of a class-conditional model")
    return parser.parse_args(words)


if __name__ == "__main__":
    told = read_arguments()
    made = sample(told.model, told.num_images, told.steps, told.seed, told.class_label)
    np.save(told.output, made)
    print(f"{told.output}: {len(made)} images of {made.shape[1:]}, {made.dtype}")
