"""A model's weights as files that another process reads, one set replaced by the next.

Owns which file holds the newest value of each weight, and where such files lie. It knows no engine.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stateset_agents.inference.loading import check_weights_files

if TYPE_CHECKING:
    from torch import Tensor

_MEMORY = Path("/dev/shm")


class WeightFiles:
    """The weights of a model's folder, and newer ones written beside it.

    Args:
        model: a folder with safetensors; never written to.
        parent: where folders with newer weights are made; None takes memory (`/dev/shm`) where
            that exists, else the system's folder for temporary files.

    Attributes:
        shapes: of each weight, by the name in the model's files.

    Raises:
        ModelSourceError: there are no safetensors, or one is broken.
    """

    def __init__(self, model: Path, parent: Path | None = None) -> None:
        from safetensors import safe_open

        check_weights_files(model)
        self._parent = parent or (_MEMORY if _MEMORY.is_dir() else None)
        # A finalizer, so that memory is given back when the process ends without `delete`.
        self._delete_written: Callable[[], object] | None = None
        self._homes: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(model.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    self._homes[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def write(self, weights: Iterable[tuple[str, Tensor]]) -> Path:
        """Write all weights, `weights` in place of the older ones of their names.

        Returns:
            A new folder with one file; the folder that the call before returned is gone.
        """
        from safetensors.torch import save_file

        tensors = {name: _on_its_own(tensor) for name, tensor in weights}
        for name in self._homes.keys() - tensors.keys():
            tensors[name] = self._read(name)
        folder = Path(tempfile.mkdtemp(prefix="stateset-weights-", dir=self._parent))
        delete_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            save_file(tensors, folder / "model.safetensors")
        except BaseException:  # no room, for example
            delete_folder()
            raise
        self.delete()
        self._delete_written = delete_folder
        self._homes = dict.fromkeys(tensors, folder / "model.safetensors")
        return folder

    def delete(self) -> None:
        """Delete what was written last; doing so twice is fine."""
        if self._delete_written is not None:
            self._delete_written()

    def _read(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._homes[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def _on_its_own(tensor: Tensor) -> Tensor:
    """In main memory, and no view of something larger: safetensors refuses shared memory."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    return tensor
