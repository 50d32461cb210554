"""bonsai/training/breakdown.py: kernels and operations sorted into the parts of a step."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training import breakdown
from bonsai.training.settings import StepSettings
from bonsai.training.step import TrainingStep
from bonsai.training.timing import TimedSteps, synthetic
from model import GPT, GPTConfig

# as profiles of GPUs spell them
NAMES = {
    "matrix products": """
        nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNN
        nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NTT
        sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1
        sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x64x16_stage4
        void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>
        void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<...>>
        ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_nt
        void gemmSN_TN_kernel<float, 128, 16, 2, 4, 10, 11, false>
        void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float>
        void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>
        triton_tem_fused_mm_7
        triton_tem_fused_addmm_view_3
        aten::mm
        aten::addmm
        aten::baddbmm
        aten::mkldnn_linear
        mkldnn::_linear_pointwise""",
    "attention": """
        void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false>>
        void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>
        void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<64, 128, 128>>
        cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64_4x1x1
        cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_9_64x64x64_1x1x1
        fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>)
        fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<>)
        triton_tem_fused_flex_attention_2
        triton_tem_fused_flex_attention_backward_zeros_5
        void (anonymous namespace)::softmax_warp_forward<float, c10::BFloat16, float, 10, false>
        aten::_scaled_dot_product_flash_attention_for_cpu_backward
        aten::_softmax""",
    "loss": """
        triton_red_fused__log_softmax__to_copy_div_mul_tanh_12
        triton_red_fused__log_softmax_nll_loss_forward_prepare_softmax_online_view_4
        triton_per_fused__log_softmax_nll_loss_forward_1
        triton_poi_fused__log_softmax__log_softmax_backward_data_nll_loss_backward_nll_loss_forward_6
        triton_red_fused_prepare_softmax_online_3
        triton_red_fused_logsumexp_mm_tanh_0
        void at::native::cunn_SoftMaxForward<4, float, float, float, LogSoftMaxForwardEpilogue>
        void at::native::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>
        void at::native::cunn_SoftMaxBackward<4, float, float, float, LogSoftMaxBackwardEpilogue>
        aten::_log_softmax_backward_data
        aten::cross_entropy_loss""",
    "optimizer": """
        void at::native::multi_tensor_apply_kernel<..., at::native::FusedAdamMathFunctor<float, 4>>
        void at::native::multi_tensor_apply_kernel<..., at::native::LpNormFunctor<float, 1>>
        void at::native::fused_adam_cuda_kernel
        aten::_fused_adamw_
        aten::_foreach_norm""",
    "the rest": """
        triton_per_fused__to_copy_add_embedding_native_layer_norm_0
        triton_poi_fused_addmm_gelu_view_4
        triton_poi_fused_mm_pow_relu_8
        void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>
        Memset (Device)
        Memcpy HtoD (Pinned -> Device)
        aten::native_layer_norm
        aten::embedding_dense_backward
        aten::gelu""",
}


@pytest.mark.parametrize("part", NAMES)
def test_names_are_sorted_into_parts(part):
    names = [line.strip() for line in NAMES[part].strip().splitlines()]
    assert {name: breakdown.part_of(name) for name in names} == dict.fromkeys(names, part)


def kernel(name: str, start: float, end: float, device=DeviceType.CUDA, **more):
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, time_range=span, device_type=device, **more)


def test_kernels_within_an_update_are_the_optimizers():
    """Muon's products too; what the profiler notes of the mark itself is no kernel."""
    gemm = "nvjet_hsh_256x128_64x4"
    events = [
        kernel("aten::mm", 0, 5, DeviceType.CPU, self_cpu_time_total=5),
        kernel(gemm, 2, 32),
        kernel("Memset (Device)", 32, 42),
        kernel(breakdown.UPDATE, 50, 100, DeviceType.CPU, self_cpu_time_total=50),
        kernel(breakdown.UPDATE, 55, 95),
        kernel("step", 0, 99, is_user_annotation=True),
        kernel(gemm, 60, 70),
        kernel(gemm, 110, 160),
    ]
    rows = breakdown.timed(events, on_gpu=True)
    want = {"matrix products": 0.8, "optimizer": 0.1, "the rest": 0.1, "loss": 0, "attention": 0}
    assert breakdown.shares(rows) == pytest.approx(want)
    said = breakdown.describe(rows, 2).splitlines()
    assert said[0].startswith("share of time     matrix products 80.0%, ")
    assert [cell.strip() for cell in said[4].strip("| ").split("|")] == [
        *("matrix products", gemm, "0.040", "80.0%", "1")
    ]


def test_a_device_that_cannot_be_looked_into_has_no_shares():
    """As in a container without the rights to: the profiler has events of the CPU alone."""
    event = kernel("aten::mm", 0, 5, DeviceType.CPU, self_cpu_time_total=5)
    rows = breakdown.timed([event], on_gpu=True)
    assert rows == breakdown.longest(rows, 3) == []
    assert breakdown.shares(rows) == dict.fromkeys((*breakdown.PARTS, breakdown.REST), 0.0)
    assert breakdown.describe(rows, 3).startswith("share of time     n/a (")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_profile_of_real_steps(optimizer):
    """On a CPU: each part has its operations, and the update is the optimizer's alone."""
    torch.manual_seed(0)
    shape = dict(block_size=32, vocab_size=99, n_layer=2, n_head=2, n_embd=32)
    runtime = setup("cpu", "float32", False)
    settings = StepSettings(optimizer=optimizer)
    training = TrainingStep(GPT(GPTConfig(**shape)), settings, runtime)
    step = TimedSteps(training, synthetic(99, 4, 32, runtime.device))
    step()
    rows = breakdown.timed(breakdown.record(step, 2, runtime).events(), on_gpu=False)
    shares = breakdown.shares(rows)
    assert set(shares) == {*breakdown.PARTS, breakdown.REST}
    assert all(shares.values()) and sum(shares.values()) == pytest.approx(1)
    names = {part: {name for p, name, _ in rows if p == part} for part in shares}
    assert "aten::mm" in names["matrix products"]
    assert any("attention" in name for name in names["attention"])
    assert "aten::_fused_adamw_" in names["optimizer"]
    products = {"aten::mm", "aten::bmm", "aten::baddbmm", "aten::addmm"}
    assert bool(products & names["optimizer"]) == (optimizer == "muon")
    assert not {"aten::_fused_adamw_"} & set().union(
        *(names[p] for p in shares if p != "optimizer")
    )


@pytest.mark.parametrize("size", [500, 20_000])
def test_a_trace_that_does_not_fit_leaves_nothing(tmp_path, size):
    """torch writes it by pieces of 8 KiB, and of the last one it does not even note an error."""
    resource = pytest.importorskip("resource", reason="limits the size of files by POSIX")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(100 if size > 500 else 1):
            torch.ones(2) + 1
    (tmp_path / "trace.json").write_text("an earlier one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"the disk is full while writing .*trace\.json"):
            breakdown.write_trace(recorded, tmp_path / "trace.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
