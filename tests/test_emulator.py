"""The CUDA kernels without a GPU: compiled as C++ with AddressSanitizer, they pass the CPU's tests.

The first run compiles for a minute or two; later ones only what changed.
"""

import re
import shutil
import subprocess

import pytest
from emulator import build, mutations
from emulator.run import start_tests

pytestmark = pytest.mark.skipif(
    shutil.which(build.COMPILER) is None, reason=f"no C++ compiler ({build.COMPILER})"
)

# Two runs of about the same length, one for each of two cores; and fewest tests of each.
RUNS = {
    "lookups": (
        ["ops/test_lookup.py", "ops/test_lookup_linear.py", "ops/test_layouts.py",
         "ops/test_contracts.py", "emulator"],
        300,
    ),
    "gradients": (
        ["ops/test_lookup_bag.py", "ops/test_coalesce.py", "ops/test_update.py",
         "ops/test_repack.py", "ops/test_rounding.py", "optim/test_training.py"],
        400,
    ),
}  # fmt: skip
# What the emulator's own tests run, and what must come of it.
PROBES = {
    "barrier": "right",
    "missing_barrier": "wrong",
    "shuffle": "right",
    "shuffle_outside_its_mask": "a (lane is not in|shuffle reads a lane)",
    "read": "right",
    "read_off_by_one": "AddressSanitizer: heap-buffer-overflow",
    "divergent_barrier": "threads wait for threads that do not come: 5 at a barrier, 123 done",
    "divergent_shuffle": "threads wait for threads that do not come: 0 at a barrier",
    "assert": "device assert: .*a thread is past the limit",
}


@pytest.fixture(scope="module")
def library():
    return build.build()


def test_every_operation_on_the_emulated_kernels(library):
    runs = {name: start_tests(library, files) for name, (files, _) in RUNS.items()}
    outputs = {name: run.communicate()[0] for name, run in runs.items()}
    for name, run in runs.items():
        output = outputs[name]
        assert run.returncode == 0 and "AddressSanitizer" not in output, output[-8000:]
        passed = int(re.search(r"(\d+) passed", output)[1])
        assert passed >= RUNS[name][1], f"only {passed} tests of {name} ran"


@pytest.mark.parametrize("name", PROBES)
def test_the_emulator_notices(name):
    run = subprocess.run([build.build_probes(), name], capture_output=True, text=True)
    shown = run.stdout + run.stderr
    assert re.search(PROBES[name], shown), shown
    assert ("AddressSanitizer: " in shown) == ("AddressSanitizer" in PROBES[name])


@pytest.mark.parametrize("mutation", mutations.QUICK, ids=str)
def test_a_broken_kernel_fails_its_tests(library, mutation, tmp_path):
    assert mutation.is_noticed(tmp_path)


def test_every_mutation_still_finds_its_text(tmp_path):
    for mutation in mutations.MUTATIONS:
        mutation.apply(tmp_path / mutation.name)


def test_a_mutation_that_finds_no_text_is_refused(tmp_path):
    stale = mutations.Mutation("stale", "cuda/lookup.cuh", "no such text", "", mutations.LOOKUP)
    with pytest.raises(RuntimeError, match="must hold its text once, holds it 0 times"):
        stale.apply(tmp_path)
