"""PyTorch's .pth, .pt or .bin files to .safetensors, where PyTorch is installed: nothing but tensors is unpickled.

    python -m stce_jax.convert.pth_to_safetensors IN.pth OUT.safetensors

`torch.load(weights_only=True)` refuses files with other objects than tensors, numbers, text and their containers.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.convert.files import PREFIXES
from stce_jax.errors import CheckpointError, ConfigError, StceError, shown
from stce_jax.paths import first_line, named_failures, open_regular, write_bytes
from stce_jax.platform import terminal

# Under which checkpoints keep the weights, the first that is there.
WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net")
DEEPEST = 4


def convert(source: str | Path, output: str | Path) -> dict[str, Any]:
    """Writes the tensors of a PyTorch file as .safetensors; the file appears whole or not at all.

    Args:
      source: of `torch.save`: tensors by name, or such a dict under a name such as "model" or "state_dict".
      output: the .safetensors file.

    Returns:
      {"tensors": how many were written, "left_out": names of what is no tensor, "inside": the names of the dicts that
      held them}.

    Raises:
      ConfigError: PyTorch is not installed, there is no such file, or the output cannot be written.
      CheckpointError: the file is damaged, holds other objects, or no tensors.
    """
    if Path(output).suffix != ".safetensors":
        raise ConfigError(f"{output} must end with .safetensors")
    try:
        import safetensors.torch
        import torch
    except ImportError as error:
        raise ConfigError(
            "this needs PyTorch; run it in an environment with torch and safetensors, which it alone uses"
        ) from error
    try:
        with open_regular(source) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {first_line(error)}; give a PyTorch file") from error
    except Exception as error:  # UnpicklingError with a page of advice, and whatever damage leads to
        raise CheckpointError(
            f"cannot read {source} without running what it holds: {_reason(error)}; have its state dict saved alone"
        ) from error
    inside: list[str] = []
    while isinstance(found, Mapping) and len(inside) < DEEPEST:
        name = next((name for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if name is None:
            break
        inside.append(name)
        found = found[name]
    tensors = _tensors(found, torch) if isinstance(found, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors by name; have a model's state dict saved")
    left_out = sorted(str(name) for name in found if name not in tensors)
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    # Each with numbers of its own: tensors may share them, or be views.
    own = {name: _own(source, name, tensor) for name, tensor in tensors.items()}
    try:
        content = safetensors.torch.save(own, {"format": "pt"})
    except Exception as error:  # of a type of numbers that such files have not
        raise CheckpointError(
            f"{source} cannot be .safetensors: {first_line(error)}; have it saved in float32"
        ) from error
    with named_failures(f"write {output}", "give another file"):
        write_bytes(output, content)
    return {"tensors": len(own), "left_out": left_out, "inside": inside}


def _tensors(found: Mapping[Any, Any], torch: Any) -> dict[str, Any]:
    return {name: one for name, one in found.items() if isinstance(name, str) and isinstance(one, torch.Tensor)}


def _own(source: str | Path, name: str, tensor: Any) -> Any:
    """A plain tensor; CheckpointError for what is none: one without numbers, quantised, or nested."""
    try:
        if tensor.is_quantized or tensor.is_nested:
            raise TypeError("it is quantised or nested")
        return tensor.detach().to_dense().contiguous().clone().cpu()
    except Exception as error:
        raise CheckpointError(
            f"{source} holds {shown(name)}, which is no plain tensor: {first_line(error)}; save plain tensors"
        ) from error


def _reason(error: Exception) -> str:
    """The line of PyTorch's explanation that names what is not allowed."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), None)
    return reason.rstrip(".") if reason else first_line(error)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="pth_to_safetensors", description="PyTorch's files to .safetensors.")
    parser.add_argument("source", metavar="IN", help="a .pth, .pt or .bin file")
    parser.add_argument("output", metavar="OUT", help="the .safetensors file to write")
    arguments = parser.parse_args(words)
    try:
        done = convert(arguments.source, arguments.output)
    except StceError as error:
        terminal.warn(error)
        return error.exit_code
    inside = f" (under {'.'.join(done['inside'])})" if done["inside"] else ""
    left = f"; left out, as no tensors: {', '.join(map(shown, done['left_out'][:5]))}" if done["left_out"] else ""
    terminal.say(f"{arguments.output}: {done['tensors']} tensors{inside}{left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
