"""Generate text from a model in an ONNX file: with ONNX Runtime and NumPy, without Treadle.

pip install onnxruntime numpy
treadle models export names --format onnx
python examples/onnx/generate.py names.onnx --prompt ma --tokens 20 --temperature 0.8

The vocabulary is in the file's metadata. This program reads vocabularies of characters and bytes.
"""

import argparse
import codecs
import json
import sys

import numpy as np
import onnxruntime

LAST = np.array([-1])
"""For `from_step`: only those of the last step are."""


class Vocabulary:
    """Turns characters or bytes into tokens and back; special tokens follow the ordinary ones."""

    def __init__(self, tokenizer, size):
        self.kind = tokenizer["config"]["kind"]
        if self.kind not in ("characters", "bytes"):
            sys.exit(f"generate.py: the model's tokens are {self.kind}, not characters or bytes")
        self.symbols = tokenizer.get("symbols", "")
        self.ordinary = len(self.symbols) if self.kind == "characters" else 256
        lines = tokenizer["layout"] == "lines"
        self.begin = self.ordinary if lines else None
        self.end = self.ordinary + 1 if lines else None
        self.never = [token for token in range(self.ordinary, size) if token != self.end]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def encode(self, text):
        if self.kind == "bytes":
            return list(text.encode())
        unknown = sorted(set(text) - set(self.symbols))
        if unknown:
            sys.exit(f"generate.py: the vocabulary lacks {unknown[0]!r}: leave it out of --prompt")
        return [self.symbols.index(symbol) for symbol in text]

    def decode(self, token):
        """Returns the text that a token completes; a byte may be a part of a character."""
        if self.kind == "characters":
            return self.symbols[token]
        return self._decoder.decode(bytes([token]))


class Network:
    """Runs the graph and keeps the states between its runs."""

    def __init__(self, session, states):
        self._session = session
        self._next = [state["next"] for state in states.values()]
        self._names = list(states)
        shapes = [
            [1 if size == "B" else size for size in each["shape"]] for each in states.values()
        ]
        self._states = [np.zeros(shape, np.float32) for shape in shapes]

    def read(self, tokens):
        """Reads tokens after those before, and returns the log-probabilities of the next one."""
        inputs = dict(zip(self._names, self._states, strict=True))
        inputs["tokens"] = np.array([tokens])
        inputs["from_step"] = LAST
        results, *self._states = self._session.run(["log_probabilities", *self._next], inputs)
        return results[0, -1]


def draw(log_probabilities, temperature, rng):
    """Draws a token; a temperature of 0 takes the most probable one."""
    if temperature == 0:
        return int(log_probabilities.argmax())
    scaled = log_probabilities / temperature
    return int((scaled + rng.gumbel(size=scaled.size)).argmax())


def main():
    parser = argparse.ArgumentParser(description="Generate text from a Treadle model in ONNX.")
    parser.add_argument("file", metavar="FILE", help="the model: treadle models export")
    parser.add_argument("--prompt", default="", help="the text to continue")
    parser.add_argument("--tokens", type=int, default=200, help="most new tokens (default: 200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the most probable")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same text")
    args = parser.parse_args()

    try:
        session = onnxruntime.InferenceSession(args.file, providers=["CPUExecutionProvider"])
    except Exception as fault:  # ONNX Runtime's exceptions have no other class in common
        sys.exit(f"generate.py: cannot read {args.file}: {fault}")
    metadata = session.get_modelmeta().custom_metadata_map
    if "treadle" not in metadata:
        sys.exit(f"generate.py: {args.file} is not from `treadle models export`")
    header = json.loads(metadata["treadle"])
    size = session.get_outputs()[0].shape[-1]
    vocabulary = Vocabulary(header["tokenizer"], size)
    network = Network(session, json.loads(metadata["treadle.states"]))

    tokens = vocabulary.encode(args.prompt)
    if vocabulary.begin is not None:
        tokens.insert(0, vocabulary.begin)
    rng = np.random.default_rng(args.seed)
    results = network.read(tokens or [header["default_context"]])  # the prefill
    for _ in range(args.tokens):
        results[vocabulary.never] = -np.inf
        token = draw(results, args.temperature, rng)
        if token == vocabulary.end:
            break
        print(vocabulary.decode(token), end="", flush=True)
        results = network.read([token])  # a step
    print()


if __name__ == "__main__":
    main()
