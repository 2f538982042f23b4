"""The weights of a run's best epoch: in its folder, and in memory for as long as they cannot be written there."""

import json
from typing import Any

import keras
import numpy as np

from bert_mtl.atomic import atomic_write
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.runs import Run, RunError, load_variables, save_variables, weights_of
from bert_mtl.tasks import DataError
from bert_mtl.tracking import Careful


class Selected:
    """What `train.select` holds to be the best so far."""

    def __init__(self, run: Run, tracker: Careful):
        self.run, self.tracker = run, tracker
        self.held: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None  # what the folder should have

    def take(self, model: MultiTaskModel, tuned: dict[str, Any]) -> None:
        """Keeps the weights as they are, and what heads tuned with them."""
        arrays = {name: np.array(keras.ops.convert_to_numpy(value)) for name, value in weights_of(model).items()}
        self.held = arrays, tuned
        self.written()

    def written(self) -> bool:
        """Whether the folder has them; tries to write what it has not, and says where that fails."""
        try:
            self._write()
        except (DataError, OSError) as error:
            self.tracker.note(str(self.run.folder), "weights of the best epoch (they are in memory)", error)
        return self.held is None

    def settle(self) -> None:
        """Writes what the folder has not. Raises RunError where that fails even now."""
        try:
            self._write()
        except (DataError, OSError) as error:
            raise RunError(f"the weights of the best epoch were lost, as they could not be written: {error}") from error

    def bring(self, model: MultiTaskModel) -> None:
        """Gives them to `model`."""
        if self.held is None:
            load_variables(self.run.weights, weights_of(model))
            return
        for name, variable in weights_of(model).items():
            variable.assign(self.held[0][name])

    def _write(self) -> None:
        if self.held is None:
            return
        arrays, tuned = self.held
        save_variables(self.run.weights, arrays)
        with atomic_write(self.run.tuned) as file:
            file.write(json.dumps(tuned).encode())
        self.held = None
