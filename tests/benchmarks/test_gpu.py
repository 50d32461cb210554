"""The checks of benchmarks/gpu_checks.py, which also run without pytest, on this machine's GPU."""

import importlib.util

import pytest
import torch
from helpers.programs import ROOT

path = ROOT / "benchmarks" / "gpu_checks.py"
spec = importlib.util.spec_from_file_location("gpu_checks", path)
gpu_checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_checks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", gpu_checks.CHECKS)
def test_on_the_gpu(name, tmp_path):
    print(gpu_checks.CHECKS[name]("cuda", tmp_path))
