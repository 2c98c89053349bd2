"""Weight files in and out, and models by name: the only room that knows file formats and foreign key names."""

from drct.weights.detect import detect
from drct.weights.files import WeightFile, read_weights, weights_sha256
from drct.weights.load import LoadReport, load_into, load_network
from drct.weights.models import ModelCard, find_model, list_models, models_folder
from drct.weights.save import export_compat, save_network

__all__ = [
    "LoadReport",
    "ModelCard",
    "WeightFile",
    "detect",
    "export_compat",
    "find_model",
    "list_models",
    "load_into",
    "load_network",
    "models_folder",
    "read_weights",
    "save_network",
    "weights_sha256",
]
