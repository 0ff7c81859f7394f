"""Imports point one way. The syntax trees are walked, so that those in functions are seen too."""

import ast
import graphlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports from its own line and those above it. A new one takes its place here.
LAYERS = [
    {
        "randomness",
        "schedule",
        "gaussian",
        "prediction",
        "embedding",
        "attention",
        "resnet",
        "images",
        "buckets",
        "cli",
        "data",
        "processes",
    },
    {"solvers"},
    {"blocks"},
    {"unet_config"},
    {"unet_files", "unet", "presets"},
    {"objective", "likelihood", "bound", "sampler", "slots", "reuse"},
    {"maps", "attention_measures", "ablation", "guidance", "attention_guidance", "guides"},
    {
        "model_folder",
        "model_card",
        "model",
        "pipeline",
        "edits",
        "editing",
        "checkpoints",
        "metrics",
    },
]
PROGRAMS = ("training", "sampling", "benchmarks")


def modules(package: str) -> dict[str, Path]:
    """Dotted names of a package's modules; none for a package that does not exist."""
    files = sorted((ROOT / package).rglob("*.py"))
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def imports(file: Path) -> set[str]:
    """Dotted names of everything that a file imports, at its top or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports here are absolute"
            # Either may be the module: `from ddpm_sa import images`, `from ddpm_sa.unet import U`.
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms(file: Path) -> set[str]:
    """The rooms of ddpm_sa, and with them lazily named ones, that a file imports from."""
    names = {name.split(".")[1] for name in imports(file) if name.startswith("ddpm_sa.")}
    return {name for name in names if any(name in layer for layer in LAYERS)}


PACKAGE = {name: file for name, file in modules("ddpm_sa").items() if name != "ddpm_sa"}


@pytest.mark.parametrize("name", PACKAGE)
def test_a_module_imports_from_its_own_layer_or_below(name: str) -> None:
    room = name.split(".")[1]
    (height,) = [height for height, layer in enumerate(LAYERS) if room in layer]
    allowed = set().union(*LAYERS[: height + 1])
    assert rooms(PACKAGE[name]) <= allowed
    foreign = {imported.split(".")[0] for imported in imports(PACKAGE[name])}
    assert not foreign & {*PROGRAMS, "tests"}


def test_rooms_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, file in PACKAGE.items():
        room = name.split(".")[1]
        graph.setdefault(room, set()).update(rooms(file) - {room})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("package", PROGRAMS)
def test_programs_do_not_import_each_other(package: str) -> None:
    """But those that measure them."""
    for file in modules(package).values():
        first = {name.split(".")[0] for name in imports(file)}
        measured = {*PROGRAMS} if package == "benchmarks" else {package}
        assert not first & ({*PROGRAMS, "tests"} - measured), file


def test_nothing_under_benchmarks_is_named_as_a_package_is() -> None:
    """Python puts a program's folder first on sys.path: its neighbours would shadow packages."""
    taken = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}
    assert "torch" in taken
    assert not {file.stem for file in modules("benchmarks").values()} & taken


def test_importing_the_package_imports_no_torch() -> None:
    line = "import ddpm_sa, sys; print(sorted({name.split('.')[0] for name in sys.modules}))"
    told = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(told.stdout))
    assert "ddpm_sa" in loaded
    assert not loaded & {"torch", "diffusers", "numpy", "accelerate", "datasets", "einops", "PIL"}


def test_every_public_name_is_there() -> None:
    import ddpm_sa

    assert {"UNet", "NoiseSchedule", "Pipeline", "preset"} <= set(ddpm_sa.__all__)
    for name in ddpm_sa.__all__:
        assert getattr(ddpm_sa, name).__name__ == name
    assert ddpm_sa.checkpoints.from_ddpm_tf.__name__ == "from_ddpm_tf"
    with pytest.raises(AttributeError, match="has no attribute 'Unet'"):
        _ = ddpm_sa.Unet
