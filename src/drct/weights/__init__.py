"""Weight files in and out, and models by name: the only room that knows file formats and foreign key names."""

from drct.weights.cards import ModelCard, models_folder
from drct.weights.detect import detect
from drct.weights.downloads import download
from drct.weights.export import export_model
from drct.weights.files import WeightFile, read_weights, weights_sha256
from drct.weights.load import LoadReport, load_into, load_network
from drct.weights.models import find_model, list_models, write_card
from drct.weights.save import export_compat, save_network

__all__ = [
    "LoadReport",
    "ModelCard",
    "WeightFile",
    "detect",
    "download",
    "export_compat",
    "export_model",
    "find_model",
    "list_models",
    "load_into",
    "load_network",
    "models_folder",
    "read_weights",
    "save_network",
    "weights_sha256",
    "write_card",
]
