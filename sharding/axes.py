"""The glossary: every mesh axis and every logical array axis, one line each.

A parameter or activation names its dimensions with a string of these letters, one for each:
``"BTKGh"``. `UNDIVIDED` takes the place of a letter where no mesh axis may divide the dimension:
``"BTKG_"``. A `Layout` says which mesh axes divide each letter. Comments beside the code write
``[B, T, F.yz]`` for an array whose d_ff dimension is divided over mesh axes y and z, as in Pope et
al. 2022 ("Efficiently Scaling Transformer Inference", section 3.1).
"""

UNDIVIDED = "_"
"""In place of a letter: a dimension that no mesh axis divides."""

MESH_AXES: dict[str, str] = {
    "x": "shards d_model in layouts of two dimensions; d_ff and heads in layouts of one",
    "y": "shards d_ff and heads",
    "z": "shards d_ff and heads",
}

LOGICAL_AXES: dict[str, str] = {
    "B": "batch: sequences decoded together",
    "T": "query tokens per sequence in this forward pass; 1 when decoding",
    "S": "cached tokens per sequence: the slots of the KV cache",
    "D": "d_model, as matmuls read or make it",
    "R": "d_model of the residual stream, between blocks",
    "F": "d_ff, the hidden width of the MLP",
    "f": "d_ff of layers with another width: without experts, or without keys of their own",
    "s": "d_ff of the MLP that all tokens meet beside their experts",
    "K": "KV heads",
    "G": "query heads per KV head",
    "h": "head size",
    "J": "KV heads of layers without a window, where these have other sizes",
    "Q": "query heads per KV head of these layers",
    "H": "head size of these layers",
    "V": "vocabulary",
    "E": "experts, as their weights are stored",
    "e": "experts, as the router scores them: whole on every chip",
    "q": "latent of a query, whole on every chip",
    "l": "latent and rotary key of a token, as they are cached; whole on every chip",
    "c": "latent of a token's keys and values, whole on every chip",
    "u": "head size of the content of queries and keys, whole on every chip",
    "v": "head size of values in latent attention",
    "n": "head size of a norm's scale, whole on every chip",
    "k": "KV heads of a norm's scale, whole on every chip",
    "g": "query heads per KV head of a norm's scale, whole on every chip",
    "a": "gates of the MLP that all tokens meet beside their experts: one",
    "N": "key heads of delta layers",
    "M": "value heads per key head of delta layers",
    "o": "head size of values in delta layers",
    "w": "what a key head of a delta layer makes of a token: query, key, values and their gates",
    "i": "head size of queries and keys in delta layers, whole on every chip",
    "j": "head size of values in a norm's scale of delta layers, whole on every chip",
    "m": "numbers of a key head that a delta layer convolves, whole on every chip",
    "t": "tokens that its convolution sees, whole on every chip",
    "r": "tokens that it sees before the newest one, whole on every chip",
    "b": "key heads of small arrays of delta layers, whole on every chip",
    "d": "value heads per key head of such arrays, whole on every chip",
    "A": "head size of a norm's scale in layers without a window, whole on every chip",
    "p": "input of its own that a layer has of each token, whole on every chip",
    "P": "those of all layers, one after the other; whole on every chip",
    "C": "matrices stored as one and read as one: gate and up; key and value; strength and fade",
}
