"""A model on the hub: its configuration and the headers of its weights, without downloading the weights."""

from __future__ import annotations

from pathlib import Path

from advisor.hf_files import Shapes, read_shapes
from knowledge.shards import SINGLE
from knowledge.values import InputError

REMEDY = "check the name and the network, or download the folder elsewhere and give its path"


def fetch_config(hub_id: str) -> Path:
    """A folder with the model's config.json: the cached download, or this file alone; raises InputError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=5)).parent
    except (OSError, ValueError, HfHubHTTPError, RuntimeError):
        raise InputError("model", hub_id, "no such folder, and the hub did not give it", REMEDY) from None


def fetch_shapes(hub_id: str, folder: Path) -> Shapes:
    """Shape of every tensor, from the cached weights where they are, else from their headers; raises InputError."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    if any(folder.glob(f"{Path(SINGLE).stem}*.safetensors")):
        return read_shapes(folder)
    try:
        files = get_safetensors_metadata(hub_id).files_metadata.values()
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        raise InputError("model", hub_id, "has no readable safetensors weights", "convert it to safetensors") from None
    except (OSError, ValueError, HfHubHTTPError, RuntimeError):
        raise InputError("model", hub_id, "the hub did not give its weights' headers", REMEDY) from None
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}
