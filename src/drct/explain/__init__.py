"""What a network looks at (LAM), how its features flow, what it costs; figures need the extra ``explain``."""

from drct.explain.cost import Memory, NetworkCost, activation_memory, network_cost
from drct.explain.features import group_features
from drct.explain.flow import Flow, feature_flow
from drct.explain.lam import Attribution, Window, attribute, attribute_all, diffusion_index
from drct.explain.subjects import Subject, load_subjects

__all__ = [
    "Attribution",
    "Flow",
    "Memory",
    "NetworkCost",
    "Subject",
    "Window",
    "activation_memory",
    "attribute",
    "attribute_all",
    "diffusion_index",
    "feature_flow",
    "group_features",
    "load_subjects",
    "network_cost",
]
