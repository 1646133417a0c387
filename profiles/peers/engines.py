"""The engines that are compared, and the module that runs each: see `serve`."""

OWN = "floorline"
_HUGGING_FACE, _LLAMA_CPP = "profiles.peers.hugging_face", "profiles.peers.llama_cpp"
ENGINES = {
    OWN: "profiles.peers.floorline",  # this project, on one device
    "transformers": _HUGGING_FACE,  # a plain loop over the model, with a growing cache
    "transformers-compiled": _HUGGING_FACE,  # a static cache, and steps compiled by torch.compile
    "transformers-generate": _HUGGING_FACE,  # its own loop
    "llama.cpp": _LLAMA_CPP,  # its server, on the same weights in one plain type
    "llama.cpp-quantized": _LLAMA_CPP,  # its server, on the file as it is
}
DEFAULT = [name for name in ENGINES if name != "transformers-generate"]
"""Those that are compared unless others are asked for."""
