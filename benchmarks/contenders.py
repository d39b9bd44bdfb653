"""Who takes turns in versus_torch.py: one step of either framework, and the rounds in which they are timed.

A contender is (step, wait): step() starts one step and returns what wait() takes to see its end.
"""

import copy
import functools
import itertools
import math
import sys
import time

import jax
import jax.numpy as jnp
import torch
import training
from torch.nn import functional as F
from training import LEARNING_RATE, WEIGHT_DECAY

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
JAX, EAGER, COMPILED = "JAX", "PyTorch eager", "PyTorch compiled"


def compile_jax(function, *arguments):
    """(compiled program, bytes of its temporaries on all devices)."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled, compiled.memory_analysis().temp_size_in_bytes * jax.device_count()


def jax_inference(model, variables, images, labels):
    del labels
    forward, temporary = compile_jax(functools.partial(model.apply, train=False), variables, images)
    return functools.partial(forward, variables, images), temporary


def jax_training(model, variables, images, labels):
    step = training.compile_step(model, variables, images, labels)
    return step.call, step.temporary_bytes


def jax_embedding(model, variables, images, labels):
    del labels
    embedding = model.embedding.clone(parent=None)
    own = {kind: collection["embedding"] for kind, collection in variables.items() if "embedding" in collection}

    def loss(params, images):
        tokens, _ = embedding.apply({**own, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.square(tokens.astype(jnp.float32)).sum()

    images = images.astype(model.dtype)
    compiled, temporary = compile_jax(jax.grad(loss), own["params"], images)
    return functools.partial(compiled, own["params"], images), temporary


def torch_inference(model, autocast, images, labels):
    del labels
    model.eval()

    def step():
        with torch.inference_mode(), autocast():
            return model(images)

    return step


def torch_training(model, autocast, images, labels):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step():
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def torch_embedding(model, autocast, images, labels):
    del labels
    embedding = model.embedding.train()
    if isinstance(model, torch._dynamo.OptimizedModule):  # whose parts are not compiled by themselves
        embedding = torch.compile(embedding)

    def step():
        embedding.zero_grad()
        with autocast():
            tokens = embedding(images)
        tokens.float().square().sum().backward()

    return step


def torch_wait(_):
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_memory():
    """Bytes that PyTorch holds on the GPU; 0 without one. Its peak counts anew from here."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def contenders_of(mode, models, batches, autocast, compiled):
    """({name: contender}, bytes of JAX's temporaries) of a mode, by (JAX's model, variables, PyTorch's model)."""
    model, variables, reference = models
    jax_batch, torch_batch = batches
    make_jax = {"inference": jax_inference, "training": jax_training, "embedding": jax_embedding}[mode]
    make_torch = {"inference": torch_inference, "training": torch_training, "embedding": torch_embedding}[mode]
    step, temporary = make_jax(model, variables, *jax_batch)
    contenders = {
        JAX: (step, jax.block_until_ready),
        EAGER: (make_torch(copy.deepcopy(reference), autocast, *torch_batch), torch_wait),
    }
    if compiled:
        torch.compiler.reset()
        contenders[COMPILED] = make_torch(torch.compile(copy.deepcopy(reference)), autocast, *torch_batch), torch_wait
    return contenders, temporary


def run_steps(step, wait, count, clock):
    """Seconds that `count` steps take by the clock, the last one's end awaited."""
    start = clock()
    for _ in range(count):
        outputs = step()
    wait(outputs)
    return clock() - start


def warm_up(step, wait, seconds, clock):
    """Compiles, then returns how many steps fill about `seconds`."""
    for _ in range(2):
        run_steps(step, wait, 1, clock)
    return max(1, math.ceil(seconds / run_steps(step, wait, 1, clock)))


def measure(contenders, arguments, memory):
    """{name: images per second in each round} of {name: contender}; torch.compile is left out where it fails.

    Adds PyTorch's bytes to `memory`, on GPUs.
    """
    counts, clock = {}, CLOCKS[arguments.clock]
    for name, (step, wait) in contenders.items():
        print(f"  warming up {name}", file=sys.stderr)
        before = torch_memory()
        try:
            counts[name] = warm_up(step, wait, arguments.seconds, clock)
        except Exception as error:
            if name != COMPILED:
                raise
            reason = (str(error).splitlines() or [""])[0]
            print(f"  torch.compile failed and is left out: {type(error).__name__}: {reason}", file=sys.stderr)
            continue
        if name != JAX and torch.cuda.is_available():
            memory[name] = torch.cuda.max_memory_allocated() - before
    speeds = {name: [] for name in counts}
    order = itertools.cycle(counts)
    for _ in range(arguments.rounds):
        for name in itertools.islice(order, len(counts)):
            step, wait = contenders[name]
            run_steps(step, wait, 1, clock)  # whatever the contender before left in the caches is gone
            speeds[name].append(arguments.batch * counts[name] / run_steps(step, wait, counts[name], clock))
        next(order)  # the next round begins with the next contender
    return speeds
