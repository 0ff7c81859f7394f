"""A folder of images that a program writes, and that its next run replaces as a whole."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any

from ddpm_sa.errors import UserError
from ddpm_sa.files.atomic_files import write_atomically
from ddpm_sa.files.folder_lock import LOCK


@dataclass(frozen=True)
class ReplacedFolder:
    """The folder of one program.

    Attributes:
        folder: It exists, and this process holds it.
        record: The name of the JSON file that says how to repeat the run, and which images are its.
        image_name: The names that the program gives to images.
        what: What a run is called, as "edit".
    """

    folder: Path
    record: str
    image_name: Pattern[str]
    what: str

    @contextmanager
    def replace(self, record: dict[str, Any], names: Sequence[str]) -> Iterator[None]:
        """Inside, write the images of these names; those of an earlier run are removed at the end.

        Raises:
            ValueError: As `earlier_images` does.
        """
        earlier = self.earlier_images(names)
        # While images are written the record names those of both runs: if this is interrupted, the
        # next run can replace them all.
        self._write(record, sorted({*names, *earlier}))
        yield
        for name in {*earlier} - {*names}:
            (self.folder / name).unlink(missing_ok=True)
        self._write(record, names)

    def earlier_images(self, new_names: Sequence[str]) -> list[str]:
        """The images that the record in the folder names; none if the folder is empty.

        Raises:
            ValueError: If the folder holds other things but no record, if the record is not one of
                ours, or if a new image would overwrite a file that it does not name.
        """
        if {path.name for path in self.folder.iterdir()} <= {LOCK}:
            return []
        earlier = self._recorded_images()
        for name in new_names:
            if name not in earlier and (self.folder / name).exists():
                raise UserError(
                    f"{self.folder / name} exists and was not written by the {self.what} in this "
                    "folder; give another output_dir"
                )
        return earlier

    def _write(self, record: dict[str, Any], names: Sequence[str]) -> None:
        with write_atomically(self.folder / self.record) as partial:
            partial.write_text(json.dumps({**record, "images": names}, indent=1) + "\n")

    def _recorded_images(self) -> list[str]:
        """The images that an earlier run recorded; none if it is of a version that did not."""
        path = self.folder / self.record
        if not path.exists():
            raise UserError(
                f"{self.folder} is not empty and holds no {self.what}; give another output_dir"
            )
        try:
            names = json.loads(path.read_text()).get("images", [])
            # A name that is a path could delete files elsewhere.
            if not all(self.image_name.fullmatch(name) for name in names):
                raise UserError(f"images={names}")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); give another output_dir") from error
        return names
