"""The page of sampling/app.py: what is on it."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ddpm_sa import Pipeline
from ddpm_sa.samplers.schedulers import SCHEDULERS
from sampling.page.callbacks import FIRST, REPLACEMENTS, SECOND, VIEWS, Actions, told
from sampling.page.explorer import Explorer

MOST_SEED = 2**31 - 1
STYLE = """
#image img, #other img {image-rendering: pixelated}
#image img {cursor: crosshair}
.gradio-container {max-width: 1200px !important}
"""
INTRO = """# Where pixels look
A network makes an image out of noise. In its attention layers every pixel takes information from \
all others. Make an image, click a pixel of it, and see from where it takes."""


def serve(pipelines: Mapping[str, Pipeline], folder: str, host: str, port: int) -> None:
    """Show the page until the process is told to end.

    Args:
        folder: For gradio's files and the downloads, of which alone files are served.

    Raises:
        ValueError: If nobody can be listened to at this host and port.
    """
    page = build(Actions(Explorer(pipelines), Path(folder)))
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
            max_file_size="1b",  # nobody has anything to send here
            state_session_capacity=16,
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
        )
    except OSError as error:
        raise ValueError(f"host={host} with port={port} cannot be listened to: {error}") from error
    print(f"The page: {page.local_url}  (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def build(actions: Actions) -> gr.Blocks:
    """The page: what there is, and which action each touch starts."""
    with gr.Blocks(
        title="Where pixels look", analytics_enabled=False, delete_cache=(300, 1800)
    ) as page:
        gr.Markdown(INTRO)
        made, other = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(min_width=300):
                choice = _choices(actions)
                make = gr.Button("Make the image", variant="primary", elem_id="make")
                status = gr.Markdown("No image yet.", elem_id="status")
            with gr.Column(min_width=300):
                gr.Markdown("Click a pixel of the image, or type its row y and column x below.")
                image = _picture("The image, as it forms", "image")
                moment = gr.Slider(1, 2, 1, step=1, label="Evaluation", elem_id="moment")
                when = gr.Markdown("From noise, at 1, to the image.", elem_id="when")
                view = gr.Radio(list(VIEWS), value="predicted image", label="Show", elem_id="view")
        looks, pixels, which = _looks(actions)
        with gr.Row():
            maps = [_picture(f"Where {name} looks", name[0]) for name in (FIRST, SECOND)]
        table = gr.Markdown(elem_id="numbers")
        gr.Markdown("## Switch attention off")
        replaced, replacement, replace, other_status, other_image = _replacement(actions)
        gr.Markdown("## Take it home")
        take = gr.Button("Make the figure and the numbers", elem_id="take")
        files = gr.File(
            label="Files",
            file_count="multiple",
            interactive=False,
            visible=False,  # until there are some
            elem_id="files",
        )

        model, (layer, head) = choice[0], looks
        private: dict[str, Any] = {"api_visibility": "private"}
        seen = [image, when, *maps, table, other_image, other_status]
        shown = {
            "fn": told(actions.show),
            "inputs": [made, other, moment, layer, head, view, *pixels],
            "outputs": seen,
            "show_progress": "hidden",
        } | private
        gr.on(
            [model.change],
            told(actions.choose_model),
            model,
            [choice[3], choice[4], layer, head, replaced],
            **private,
        )
        layer.input(told(actions.choose_layer), [made, model, layer], head, **private).then(**shown)
        make.click(
            told(actions.make),
            choice,
            [made, other, image, moment, status, *pixels, other_image, other_status],
            **private,
        ).success(**shown)
        for control in (moment, head, view, *pixels):
            control.input(**shown, trigger_mode="always_last")

        image.select(actions.click, [made, which, *pixels], pixels, **private).then(**shown)
        replace.click(
            told(actions.replace),
            [made, replaced, replacement],
            [other, other_image, other_status],
            **private,
        ).success(**shown)
        take.click(told(actions.download), [made, layer, *pixels], files, **private)
    return page


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,  # it would cover the picture's corner
        alt_text=label,
        interactive=False,
        type="pil",
        format="png",
        buttons=[],
        elem_id=name,
    )


def _choices(actions: Actions) -> list[Any]:
    """Model, seed, scheduler, steps, class."""
    models = list(actions.explorer.pipelines)
    most = actions.explorer.most_steps(models[0])
    model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
    with gr.Row():
        seed = gr.Number(
            0,
            minimum=0,
            maximum=MOST_SEED,
            precision=0,
            label="Seed",
            min_width=100,
            elem_id="seed",
        )
        scheduler = gr.Dropdown(
            list(SCHEDULERS), value="ddim", label="Scheduler", min_width=220, elem_id="scheduler"
        )
    steps = gr.Slider(1, most, min(50, most), step=1, label="Steps", elem_id="steps")
    classes = actions.classes(models[0])
    label = gr.Number(
        0, minimum=0, precision=0, label="Class", visible=classes > 0, elem_id="class"
    )
    return [model, seed, scheduler, steps, label]


def _looks(actions: Actions) -> tuple[list[Any], list[Any], Any]:
    """Layer and head; y and x of the queries; which of them a click sets."""
    model = next(iter(actions.explorer.pipelines))
    start = actions.default_layer(model)
    with gr.Row():
        layer = gr.Dropdown(
            actions.layers(model), value=start, label="Layer", min_width=200, elem_id="layer"
        )
        heads = actions.heads(model, start)
        head = gr.Dropdown(heads, value=heads[0], label="Head", min_width=140, elem_id="head")
        which = gr.Radio(
            [FIRST, SECOND], value=FIRST, label="A click sets", min_width=200, elem_id="which"
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


def _replacement(actions: Actions) -> tuple[Any, Any, Any, Any, Any]:
    """Layers, what for, the button, what it says, the image."""
    with gr.Row():
        with gr.Column(min_width=300):
            layers = gr.CheckboxGroup(
                actions.layers(next(iter(actions.explorer.pipelines))),
                label="Replace the attention of",
                elem_id="replaced",
            )
            replacement = gr.Radio(
                list(REPLACEMENTS),
                value=next(iter(REPLACEMENTS)),
                label="so that",
                elem_id="replacement",
            )
            button = gr.Button("Make it again without", elem_id="replace")
            status = gr.Markdown(elem_id="other_status")
        with gr.Column(min_width=300):
            image = _picture("The same noise, attention replaced", "other")
    return layers, replacement, button, status, image
