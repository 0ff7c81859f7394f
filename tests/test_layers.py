"""Imports point one way. The syntax trees are walked, so that those in functions are seen too."""

import ast
import graphlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Floors of the package, lowest first: the files and rooms of ddpm_sa that stand on each. A module
# imports from floors below its own, and from its own room or file's neighbours without a circle.
FLOORS = [
    {"errors", "progress"},
    {"files.atomic_files", "files.json_files", "files.hub", "settings", "data.resize"},
    {"conditions.masks"},
    {"conditions.kinds"},
    {"conditions.format"},
    {"conditions.config"},
    {"randomness", "image_format", "cli", "distributed", "condition", "memory"},
    {"files.folder_lock", "conditions.given"},
    {"models.blocks.resampling", "models.normalization"},
    {
        "models.attention",
        "models.embedding",
        "models.blocks.resnet",
        "diffusion.schedule",
        "diffusion.prediction",
        "data",
    },
    {"models.blocks.levels"},
    {"models.blocks.ncsnpp", "models.blocks.k_diffusion"},
    {"models.blocks.types"},
    {"models.config", "models.load_options"},
    {"models.blocks.rms_norm", "models.blocks.song"},
    {"models.loading", "models.presets"},
    {"models.sizing", "models.network"},
    {"models.unet", "models.families", "models.attention_slots"},
    {"models.architectures"},
    {"diffusion", "samplers"},
    {"guidance", "interpret"},
    {"model_card"},
    {"model_folder"},
    {"pipeline_files"},
    {"pipeline"},
    {"editing", "checkpoints", "metrics", "export"},
    {"restoration"},
    {"__main__"},
]
# The same for the programs' packages: training, then sampling.
TRAINING = [
    {"config"},
    {"saved_config", "draws", "scheduler"},
    {"fine_tuning"},
    {"distributed"},
    {"ema", "network", "muon"},
    {"loop"},
    {"objective"},
    {"memory"},
    {"reporting"},
    {"checkpoint"},
    {"train"},
]
SAMPLING = [{"common"}, {"figures"}, {"evaluation", "page", "conversion", "restoration"}]
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
            # Either may be the module: `from pkg import module`, `from pkg.module import name`.
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def place(name: str, floors: list[set[str]]) -> tuple[int, str]:
    """The floor of a module, and what stands there: itself, or the room that holds it."""
    inside = name.split(".")[1:]
    for length in range(len(inside), 0, -1):
        room = ".".join(inside[:length])
        for height, floor in enumerate(floors):
            if room in floor:
                return height, room
    raise AssertionError(f"{name} has no floor: give it one in this file")


def arrows(package: str) -> dict[str, set[str]]:
    """What each module of a package imports from that package."""
    known = {name: file for name, file in modules(package).items() if name != package}
    found = {name: imports(file) & set(known) - {name} for name, file in known.items()}
    # An __init__ that holds a docstring alone stands on no floor.
    bare = {name for name, file in known.items() if file.stem == "__init__" and not found[name]}
    return {name: targets - bare for name, targets in found.items() if name not in bare}


HOUSES = [("ddpm_sa", FLOORS), ("training", TRAINING), ("sampling", SAMPLING)]
ENTRIES = {
    "sampling": {
        *("sample", "edit", "restore", "evaluate", "attention", "ablation", "app", "convert"),
        *("paper", "export"),
    }
}


@pytest.mark.parametrize(("package", "floors"), HOUSES)
def test_imports_point_down(package: str, floors: list[set[str]]) -> None:
    floors = [*floors, ENTRIES.get(package, set())]
    for name, targets in arrows(package).items():
        height, room = place(name, floors)
        # A room's __init__ names what is in the room.
        inside = {target for target in targets if target.startswith(f"{name}.")}
        for target in targets - inside:
            below, other = place(target, floors)
            neighbours = room.split(".")[0] == other.split(".")[0] and below == height
            assert below < height or neighbours, f"{name} imports {target}, which is not below it"


@pytest.mark.parametrize(("package", "floors"), HOUSES)
def test_every_floor_names_what_there_is(package: str, floors: list[set[str]]) -> None:
    rooms = [room for floor in [*floors, ENTRIES.get(package, set())] for room in floor]
    assert len(rooms) == len(set(rooms)), "a room stands on one floor"
    assert {f"{package}.{room}" for room in rooms} <= set(modules(package))


@pytest.mark.parametrize(("package", "floors"), HOUSES)
def test_no_modules_import_each_other_in_a_circle(package: str, floors: list[set[str]]) -> None:
    graphlib.TopologicalSorter(arrows(package)).prepare()  # raises CycleError


@pytest.mark.parametrize("name", [name for name in modules("ddpm_sa") if name != "ddpm_sa"])
def test_the_package_imports_no_program(name: str) -> None:
    foreign = {imported.split(".")[0] for imported in imports(modules("ddpm_sa")[name])}
    assert not foreign & {*PROGRAMS, "tests"}


@pytest.mark.parametrize(
    "package", ["ddpm_sa", "training", "sampling", "benchmarks", "examples", "tests"]
)
def test_no_folder_holds_more_than_fourteen_modules(package: str) -> None:
    folders = [ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())]
    for folder in folders:
        files = {file.name for file in folder.glob("*.py")} - {"__init__.py"}
        assert len(files) <= 14, f"{folder.name} has {len(files)}"


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
