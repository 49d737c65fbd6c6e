"""What ends a training or a rolling: each message is one sentence for the operator."""


class TrainingError(Exception):
    """Nothing was published; the message says what was found, where, and what was expected."""


class RecipeError(TrainingError):
    """The recipe cannot be read or contradicts itself."""


class DataError(TrainingError):
    """The data cannot be read, or are not what the recipe says."""


class ExportError(TrainingError):
    """The fitted model cannot be turned into an ONNX graph that is safe to serve."""


class BusyError(TrainingError):
    """Another process trains this model or rolls its log."""
