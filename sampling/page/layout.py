"""Layout of the page of sampling/app.py."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ddpm_sa import Pipeline
from ddpm_sa.errors import UserError
from ddpm_sa.samplers.schedulers import SCHEDULERS
from sampling.page.callbacks import FIRST, REPLACEMENTS, SECOND, VIEWS, Callbacks
from sampling.page.errors import report_errors
from sampling.page.explorer import Explorer

MAX_SEED = 2**31 - 1
STYLE = """
#image img, #other img {image-rendering: pixelated}
#image img {cursor: crosshair}
.gradio-container {max-width: 1200px !important}
"""
INTRO = """# Attention maps
A network turns noise into an image. In its attention layers every pixel takes information from \
all others. Sample an image, click one of its pixels, and see where it attends."""


def serve(pipelines: Mapping[str, Pipeline], folder: str, host: str, port: int) -> None:
    """Serve the page until the process is stopped.

    Args:
        pipelines: The models, by name.
        folder: For gradio's files and the downloads; no other files are served.
        host, port: Where to listen; port 0 takes a free one.

    Raises:
        ValueError: If the page cannot listen on this host and port.
    """
    page = build(Callbacks(Explorer(pipelines), Path(folder)))
    page.queue(max_size=32, default_concurrency_limit=1)
    try:
        page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            max_file_size="1b",  # nothing is uploaded
            state_session_capacity=16,
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"cannot listen on host={host} with port={port}: {error}") from error
    print(f"The page: {page.local_url}  (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def build(callbacks: Callbacks) -> gr.Blocks:
    """Build the page: its controls, and the callback of each."""
    with gr.Blocks(
        title="Attention maps", analytics_enabled=False, delete_cache=(300, 1800)
    ) as page:
        gr.Markdown(INTRO)
        generated, other = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(min_width=300):
                choice = _image_controls(callbacks)
                make = gr.Button("Sample the image", variant="primary", elem_id="make")
                status = gr.Markdown("No image yet.", elem_id="status")
            with gr.Column(min_width=300):
                gr.Markdown("Click a pixel of the image, or type its row y and column x below.")
                image = _picture("The image during sampling", "image")
                evaluation = gr.Slider(1, 2, 1, step=1, label="Evaluation", elem_id="moment")
                when = gr.Markdown("From noise, at 1, to the final image.", elem_id="when")
                view = gr.Radio(list(VIEWS), value="predicted image", label="Show", elem_id="view")
        layer_and_head, pixels, which = _attention_controls(callbacks)
        with gr.Row():
            maps = [_picture(f"Attention map of {name}", name[0]) for name in (FIRST, SECOND)]
        table = gr.Markdown(elem_id="numbers")
        gr.Markdown("## Switch attention off")
        replaced, replacement, replace, other_status, other_image = _ablation_controls(callbacks)
        gr.Markdown("## Download")
        take = gr.Button("Create the figure and the numbers", elem_id="take")
        files = gr.File(
            label="Files",
            file_count="multiple",
            interactive=False,
            visible=False,  # until there are some
            elem_id="files",
        )

        model, (layer, head) = choice[0], layer_and_head
        private: dict[str, Any] = {"api_visibility": "private"}
        seen = [image, when, *maps, table, other_image, other_status]
        shown = {
            "fn": report_errors(callbacks.show),
            "inputs": [generated, other, evaluation, layer, head, view, *pixels],
            "outputs": seen,
            "show_progress": "hidden",
        } | private
        gr.on(
            [model.change],
            report_errors(callbacks.choose_model),
            model,
            [choice[3], choice[4], layer, head, replaced],
            **private,
        )
        layer.input(
            report_errors(callbacks.choose_layer), [generated, model, layer], head, **private
        ).then(**shown)
        make.click(
            report_errors(callbacks.make),
            choice,
            [generated, other, image, evaluation, status, *pixels, other_image, other_status],
            **private,
        ).success(**shown)
        for control in (evaluation, head, view, *pixels):
            control.input(**shown, trigger_mode="always_last")

        image.select(callbacks.click, [generated, which, *pixels], pixels, **private).then(**shown)
        replace.click(
            report_errors(callbacks.replace),
            [generated, replaced, replacement],
            [other, other_image, other_status],
            **private,
        ).success(**shown)
        take.click(report_errors(callbacks.download), [generated, layer, *pixels], files, **private)
    return page


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,  # it would cover a corner of the picture
        alt_text=label,
        interactive=False,
        type="pil",
        format="png",
        buttons=[],
        elem_id=name,
    )


def _image_controls(callbacks: Callbacks) -> list[Any]:
    """Create the controls: model, seed, scheduler, steps, class."""
    models = list(callbacks.explorer.pipelines)
    max_steps = callbacks.explorer.max_steps(models[0])
    model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
    with gr.Row():
        seed = gr.Number(
            0,
            minimum=0,
            maximum=MAX_SEED,
            precision=0,
            label="Seed",
            min_width=100,
            elem_id="seed",
        )
        scheduler = gr.Dropdown(
            list(SCHEDULERS), value="ddim", label="Scheduler", min_width=220, elem_id="scheduler"
        )
    steps = gr.Slider(1, max_steps, min(50, max_steps), step=1, label="Steps", elem_id="steps")
    classes = callbacks.classes(models[0])
    label = gr.Number(
        0, minimum=0, precision=0, label="Class", visible=classes > 0, elem_id="class"
    )
    return [model, seed, scheduler, steps, label]


def _attention_controls(callbacks: Callbacks) -> tuple[list[Any], list[Any], Any]:
    """Create the controls: layer and head; y and x of the queries; which query a click moves."""
    model = next(iter(callbacks.explorer.pipelines))
    start = callbacks.default_layer(model)
    with gr.Row():
        layer = gr.Dropdown(
            callbacks.layers(model), value=start, label="Layer", min_width=200, elem_id="layer"
        )
        heads = callbacks.heads(model, start)
        head = gr.Dropdown(heads, value=heads[0], label="Head", min_width=140, elem_id="head")
        which = gr.Radio(
            [FIRST, SECOND], value=FIRST, label="A click moves", min_width=200, elem_id="which"
        )
    with gr.Row():
        pixels = [
            gr.Number(
                0,
                minimum=0,
                precision=0,
                label=f"{name[0]}: {axis}",
                min_width=70,
                elem_id=f"{name[0]}{axis}",
            )
            for name in (FIRST, SECOND)
            for axis in ("y", "x")
        ]
    return [layer, head], pixels, which


def _ablation_controls(callbacks: Callbacks) -> tuple[Any, Any, Any, Any, Any]:
    """Create the controls: layers, replacement, button, status, image."""
    with gr.Row():
        with gr.Column(min_width=300):
            layers = gr.CheckboxGroup(
                callbacks.layers(next(iter(callbacks.explorer.pipelines))),
                label="Replace the attention of",
                elem_id="replaced",
            )
            replacement = gr.Radio(
                list(REPLACEMENTS),
                value=next(iter(REPLACEMENTS)),
                label="so that",
                elem_id="replacement",
            )
            button = gr.Button("Sample again with replaced attention", elem_id="replace")
            status = gr.Markdown(elem_id="other_status")
        with gr.Column(min_width=300):
            image = _picture("The same noise, attention replaced", "other")
    return layers, replacement, button, status, image
