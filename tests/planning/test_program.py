"""Tests of the figures that are read from HLO text: loops, FLOPs, collectives, live arrays."""

import re

import numpy as np
import pytest

from llama_cpt.hardware.chips import CHIPS
from llama_cpt.planning.buffers import peak_of
from llama_cpt.planning.collectives import collectives, crossed_axes, device_groups
from llama_cpt.planning.hbm_traffic import hbm_bytes
from llama_cpt.planning.hlo import Instruction, Shape
from llama_cpt.planning.matrix_flops import matrix_flops
from llama_cpt.planning.program import read_module
from llama_cpt.planning.roofline import roofline

MESH = {"replica": 2, "fsdp": 4, "tensor": 2}
# A loop with 5 iterations over stacked weights. Each iteration gathers weights, multiplies them in
# a fusion and stores the result.
TEXT = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p.0: bf16[8,64], p.1: bf16[64,32]) -> bf16[8,32] {
  %p.0 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[8,32]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf, \
metadata={op_name="jit(step)/mlp/dot_general"}
}

%keep (q.0: bf16[5,8,32], q.1: bf16[8,32], q.2: s32[]) -> bf16[5,8,32] {
  %q.0 = bf16[5,8,32]{2,1,0} parameter(0)
  %q.1 = bf16[8,32]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = bf16[1,8,32]{2,1,0} bitcast(%q.1)
  ROOT %updated = bf16[5,8,32]{2,1,0} dynamic-update-slice(%q.0, %row, %q.2, %zero, %zero)
}

%body (state: (s32[], bf16[16,32], bf16[5,8,32])) -> (s32[], bf16[16,32], bf16[5,8,32]) {
  %state = (s32[], bf16[16,32]{1,0}, bf16[5,8,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %weights = bf16[16,32]{1,0} get-tuple-element(%state), index=1
  %kept = bf16[5,8,32]{2,1,0} get-tuple-element(%state), index=2
  %x = bf16[8,64]{1,0} broadcast(%i), dimensions={}
  %gather-start = (bf16[16,32]{1,0}, bf16[64,32]{1,0}) all-gather-start(%weights), \
replica_groups=[4,4]<=[2,4,2]T(0,2,1), dimensions={0}, use_global_device_ids=true
  %gathered = bf16[64,32]{1,0} all-gather-done(%gather-start)
  %y = bf16[8,32]{1,0} fusion(%x, %gathered), kind=kOutput, calls=%product
  %next = bf16[5,8,32]{2,1,0} fusion(%kept, %y, %i), kind=kLoop, calls=%keep
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  ROOT %out = (s32[], bf16[16,32]{1,0}, bf16[5,8,32]{2,1,0}) tuple(%j, %weights, %next)
}

%condition (state.1: (s32[], bf16[16,32], bf16[5,8,32])) -> pred[] {
  %state.1 = (s32[], bf16[16,32]{1,0}, bf16[5,8,32]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (w: bf16[16,32]) -> f32[] {
  %w = bf16[16,32]{1,0} parameter(0)
  %begin = s32[] constant(0)
  %room = bf16[5,8,32]{2,1,0} broadcast(%begin), dimensions={}, metadata={op_name="jit(step)/room"}
  %first = (s32[], bf16[16,32]{1,0}, /*index=2*/bf16[5,8,32]{2,1,0}) tuple(%begin, %w, %room)
  %loop = (s32[], bf16[16,32]{1,0}, bf16[5,8,32]{2,1,0}) while(%first), condition=%condition, \
body=%body KNOWN
  %all = bf16[5,8,32]{2,1,0} get-tuple-element(%loop), index=2
  %total = f32[] reduce(%all, %begin), dimensions={0,1,2}, to_apply=%add
  ROOT %summed = f32[] all-reduce(%total), replica_groups={{0,8},{1,9},{2,10},{3,11},{4,12},\
{5,13},{6,14},{7,15}}, use_global_device_ids=true, to_apply=%add
}
"""


KNOWN_TRIPS = ', backend_config={"known_trip_count":{"n":"5"}}'


def shortened(text: str) -> str:
    """Return ``text`` with tuple elements written as ``%state#0``, as in JAX 0.12 and later."""
    elements = r"\n +%([\w.]+) = .*get-tuple-element\(%([\w.]+)\), index=(\d+)"
    for name, whole, index in re.findall(elements, text):
        text = re.sub(rf"%{name}(?![\w.\-])", f"%{whole}#{index}", text)
    return re.sub(r"\n +%[\w.]+#\d+ = .*", "", text)


@pytest.fixture(params=[(KNOWN_TRIPS, str), ("", str), ("", shortened)])
def program(request):
    """The module of TEXT, with or without a known trip count in the loop's backend_config."""
    trips, written = request.param
    return read_module(written(TEXT.replace("KNOWN", trips)))


def test_products_of_a_loop_are_multiplied(program):
    assert matrix_flops(program.steps()).products == 5 * 2 * 8 * 64 * 32
    assert not program.uncounted_loops


def test_collectives_by_kind_and_axis(program):
    gather, total = collectives(program.steps(), MESH)
    assert (gather.kind, gather.axes, gather.group, gather.times) == ("all-gather", ("fsdp",), 4, 5)
    assert gather.bytes == 5 * 2 * 64 * 32 * 3 / 4
    assert (total.kind, total.axes, total.times) == ("all-reduce", ("replica",), 1)
    assert total.bytes == 2 * 4 / 2


def test_arrays_of_the_peak(program):
    """The peak has the buffer of all results, and one iteration's input, weights and output."""
    peak = peak_of(program)
    sizes = {str(one.shape) for one in peak.buffers}
    assert {"bf16[5,8,32]", "bf16[64,32]", "bf16[8,64]", "bf16[8,32]"} == sizes - {"s32[]"}
    assert peak.buffers[0].origin == "" and str(peak.buffers[0].shape) == "bf16[64,32]"


def test_updates_in_place_count_only_the_update(program):
    x, gathered, y, scalar, flag = 2 * 8 * 64, 2 * 64 * 32, 2 * 8 * 32, 4, 1
    turn = (x + scalar) + (gathered + gathered // 4) + (x + gathered + y) + (2 * y + scalar)
    counting = 3 * scalar + 2 * scalar + flag
    room, total, summed = 5 * y + scalar, 5 * y + 2 * scalar, 2 * scalar
    expected = 5 * (turn + counting) + room + total + summed
    assert hbm_bytes(program, program.steps()) == expected


# Copies into and out of VMEM, an asynchronous slice, and a slice inside nested fusions.
FETCHED = """\
%fetched (p: f32[32,8]) -> f32[8,8] {
  %p = f32[32,8]{1,0} parameter(0)
  ROOT %part = f32[8,8]{1,0:S(1)} slice(%p), slice={[0:8], [0:8]}
}

%inner (q: f32[32,8], q.1: s32[]) -> f32[1,8] {
  %q = f32[32,8]{1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %padded = f32[40,8]{1,0} pad(%q, %zero), padding=0_8x0_0
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%padded, %q.1, %zero), dynamic_slice_sizes={1,8}
}

%outer (r: f32[32,8,1], r.1: s32[]) -> f32[1,8] {
  %r = f32[32,8,1]{1,0,2} parameter(0)
  %r.1 = s32[] parameter(1)
  %flat = f32[32,8]{1,0} bitcast(%r)
  %one = f32[1,8]{1,0} fusion(%flat, %r.1), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,8]{1,0} add(%one, %one)
}

ENTRY %main (x: f32[32,8,1], i: s32[]) -> f32[1,8] {
  %x = f32[32,8,1]{1,0,2} parameter(0)
  %i = s32[] parameter(1)
  %in = (f32[32,8]{1,0:S(1)}, f32[32,8,1]{1,0,2}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[32,8]{1,0:S(1)} copy-done(%in)
  %flat.1 = f32[32,8]{1,0} bitcast(%x)
  %ahead = ((f32[32,8]{1,0}), f32[8,8]{1,0:S(1)}, s32[]{:S(2)}) async-start(%flat.1), \
calls=%fetched
  %part.1 = f32[8,8]{1,0:S(1)} async-done(%ahead)
  %back = (f32[8,8]{1,0}, f32[8,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%part.1)
  %far = f32[8,8]{1,0} copy-done(%back)
  ROOT %out = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%outer
}
"""


def test_traffic_of_copies_and_slices():
    whole, ahead, row, scalar = 4 * 32 * 8, 4 * 8 * 8, 4 * 8, 4
    program = read_module(FETCHED)
    assert hbm_bytes(program, program.steps()) == whole + 2 * ahead + (row + scalar) + row
    read_whole = read_module(FETCHED.replace("add(%one, %one)", "add(%one, %flat)"))
    assert hbm_bytes(read_whole, read_whole.steps()) == 2 * (whole + ahead) + scalar + row


def instruction(opcode: str, attributes: str) -> Instruction:
    return Instruction("one", opcode, (Shape("f32", (8,)),), (), attributes)


UNROLLED = """\
%part (p: u32[]) -> u32[] {
  %p = u32[] parameter(0)
  %two = u32[] constant(2)
  ROOT %more = u32[] add(%p, %two)
}

%body (state: (bf16[8,8], u32[], u32[])) -> (bf16[8,8], u32[], u32[]) {
  %state = (bf16[8,8]{1,0}, u32[], u32[]) parameter(0)
  %x = bf16[8,8]{1,0} get-tuple-element(%state), index=0
  %i = u32[] get-tuple-element(%state), index=1
  %end = u32[] get-tuple-element(%state), index=2
  %once = bf16[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] fusion(%i), kind=kLoop, calls=%part
  ROOT %out = (bf16[8,8]{1,0}, u32[], u32[]) tuple(%once, %next, %end)
}

%condition (state.1: (bf16[8,8], u32[], u32[])) -> pred[] {
  %state.1 = (bf16[8,8]{1,0}, u32[], u32[]) parameter(0)
  %i.1 = u32[] get-tuple-element(%state.1), index=1
  %end.1 = u32[] get-tuple-element(%state.1), index=2
  ROOT %less = pred[] compare(%i.1, %end.1), direction=LT
}

ENTRY %main (x.0: bf16[8,8]) -> bf16[8,8] {
  %x.0 = bf16[8,8]{1,0} parameter(0)
  %start = u32[] constant(1)
  %limit = u32[] constant(8)
  %given = (bf16[8,8]{1,0}, u32[], u32[]) tuple(%x.0, %start, %limit)
  %loop = (bf16[8,8]{1,0}, u32[], u32[]) while(%given), condition=%condition, body=%body
  ROOT %result = bf16[8,8]{1,0} get-tuple-element(%loop), index=0
}
"""


def test_trip_count_of_an_unrolled_loop():
    """The counter is 1, 3, 5, 7: the compiler unrolled the loop and states no trip count."""
    program = read_module(UNROLLED)
    assert matrix_flops(program.steps()).products == 4 * 2 * 8**3
    unknown = read_module(UNROLLED.replace("add(%p, %two)", "multiply(%p, %two)"))
    assert matrix_flops(unknown.steps()).products == 2 * 8**3
    assert unknown.uncounted_loops == ["loop"]


CHAINED = """\
%begin (p: bf16[4]) -> bf16[32] {
  %p = bf16[4]{0} parameter(0)
  %gather = bf16[32]{0} all-gather(%p), channel_id=7, replica_groups=[2,8]<=[16], \
frontend_attributes={chain_id="0"}
  ROOT %token = bf16[32]{0} custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%along (p.1: bf16[4]) -> bf16[32] {
  %p.1 = bf16[4]{0} parameter(0)
  %gather.1 = bf16[32]{0} all-gather(%p.1), channel_id=7, replica_groups=[2,8]<=[16], \
frontend_attributes={chain_id="0"}
  ROOT %both = (bf16[4]{0}, bf16[32]{0}) tuple(%p.1, %gather.1)
}

ENTRY %main (x: bf16[4]) -> bf16[32] {
  %x = bf16[4]{0} parameter(0)
  %first = bf16[32]{0} fusion(%x), kind=kCustom, calls=%begin
  ROOT %second = (bf16[4]{0}, bf16[32]{0}) fusion(%x), kind=kOutput, calls=%along
}
"""


def test_chained_collective_counts_once():
    (one,) = collectives(read_module(CHAINED).steps(), MESH)
    assert (one.kind, one.times, one.bytes) == ("all-gather", 1, 64 * 7 / 8)


NETWORK = """\
ENTRY %main (x: f32[1,8,128]) -> f32[1,8,128] {
  %x = f32[1,8,128]{2,1,0:T(8,128)} parameter(0)
  %after = token[] after-all()
  %send = (f32[1,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[1,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %done = (f32[1,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1
  ROOT %sum = f32[1,8,128]{2,1,0:T(8,128)} get-tuple-element(%done), index=0
}
"""


def test_collective_between_slices_uses_the_network():
    (one,) = collectives(read_module(NETWORK).steps(), MESH)
    assert (one.kind, one.axes, one.bytes) == ("all-reduce", ("replica",), 2 * 4 * 1024 / 2)
    chip = CHIPS["TPU v5 lite"]
    line = roofline(chip, flops=0.0, hbm=0.0, sent=[one], mesh=MESH, slices=2)
    assert (line.ici, line.dcn) == (0, one.bytes / chip.dcn_bandwidth)


def test_identity_permutation_is_not_counted():
    text = """\
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %same = f32[8]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1},{2,2},{3,3}}
}
"""
    assert not collectives(read_module(text).steps(), MESH)


def test_8_bit_products_count_at_their_rate():
    text = TEXT.replace("p.0: bf16", "p.0: s8").replace("p.1: bf16", "p.1: s8")
    text = text.replace("%p.0 = bf16", "%p.0 = s8").replace("%p.1 = bf16", "%p.1 = s8")
    flops = 5 * 2 * 8 * 64 * 32
    for kind, dtype, share in (
        ("TPU v5 lite", "s8", 0.5),
        ("TPU7x", "s8", 1),
        ("TPU7x", "f8e4m3fn", 0.5),
        ("TPU v6 lite", "f8e4m3fn", 1),
    ):
        found = matrix_flops(read_module(text.replace("s8[", f"{dtype}[")).steps())
        assert found.narrow == {dtype[:2]: flops}
        assert found.as_bfloat16(CHIPS[kind]) == share * flops
    wider = matrix_flops(read_module(text.replace("%p.1 = s8", "%p.1 = bf16")).steps())
    assert (wider.narrow, wider.products) == ({}, flops)


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("replica_groups=[8,2]<=[16]", ("tensor",), 2),
        ("replica_groups=[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",), 4),
        ("replica_groups=[2,8]<=[16]", ("fsdp", "tensor"), 8),
        ("replica_groups=[2,8]<=[8,2]T(1,0)", ("replica", "fsdp"), 8),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b'}", ("fsdp",), 4),
        ("replica_groups=mesh['a'=8,'c'=2] {'a':(1)2, 'c'}", ("replica", "tensor"), 4),
        ("replica_groups=mesh['a'=8,'c'=2] {'a':(2)4}", ("fsdp",), 4),
        ("replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'a'}", ("fsdp", "tensor"), 4),
        ("replica_groups={}", ("replica", "fsdp", "tensor"), 16),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", ("fsdp",), 2),
        ("source_target_pairs={{0,0},{1,1}}", (), 2),
    ],
)
def test_groups_name_mesh_axes(groups, axes, size):
    found = device_groups(instruction("all-gather", f", {groups}, channel_id=1"), 16)
    assert crossed_axes(found, MESH) == axes
    assert found.shape[1] == size
    if "pairs" not in groups:
        assert np.array_equal(np.sort(found.flatten()), np.arange(16))


def test_layout_padding():
    assert Shape("bf16", (3, 9, 64), "2,1,0:T(8,128)(2,1)").padded_bytes == 2 * 3 * 16 * 128
    assert Shape("f32", (5, 128), "1,0").padded_bytes == 4 * 5 * 128
    assert Shape("pred", (7,)).bytes == 7
    assert Shape("s4", (7,)).bytes == 4


def test_batched_product_as_a_convolution():
    """On TPUs, 6 batched products are a convolution that uses one kernel position per output."""
    text = """\
ENTRY %main (l: bf16[6,8,16], r: bf16[6,16,4]) -> bf16[6,8,4] {
  %l = bf16[6,8,16]{2,1,0} parameter(0)
  %r = bf16[6,16,4]{2,1,0} parameter(1)
  ROOT %conv = bf16[6,8,4]{2,1,0} convolution(%l, %r), \
window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""
    assert matrix_flops(read_module(text).steps()).products == 6 * 2 * 8 * 16 * 4


KERNEL = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (t: s32[36], q: bf16[2,16,64], k: bf16[2,128,32], v: bf16[2,128,32]) -> bf16[2,16,64] {
  %t = s32[36]{0} parameter(0)
  %q = bf16[2,16,64]{2,1,0} parameter(1)
  %k = bf16[2,128,32]{2,1,0} parameter(2)
  %v = bf16[2,128,32]{2,1,0} parameter(3)
  ROOT %NAME.1 = bf16[2,16,64]{2,1,0} custom-call(%t, %q, %k, %v), \
custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("flash_attention_forward", 2),
        ("flash_attention_backward", 5),
        ("flash_attention_backward_4_walks", 5 / 4),
    ],
)
def test_attention_of_a_part_of_the_queries(name, products):
    """A query sees half of the keys on average; one of N calls computes an N-th of the scores."""
    found = matrix_flops(read_module(KERNEL.replace("NAME", name)).steps())
    assert found.total == products * 2 * 2 * 64 * 16 * 129 / 2
    assert not found.unknown_kernels
