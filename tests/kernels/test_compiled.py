"""The table of what compilers make of every kernel: it does not get worse, and the comparison sees
what is worse.
"""

import os
import runpy
import subprocess
import sys

import pytest

from dream_kernels import BackendError, _aot
from kernel_rules import ROOT, compiled_table, without_interpreter

TOOL, TABLE = ROOT / "tools/compile_kernels.py", ROOT / "benchmarks/results/kernels-aot.csv"
ROW = _aot.Row("op", "op/fp32", "sm_90", 32, 0, 0, 128, 128, 0, 12.0, 12.0, 60.1)


def test_no_kernel_got_worse_than_the_table_says():
    assert _aot.worse(compiled_table(), _aot.read(TABLE)) == [], (
        "if it is meant, commit it: python tools/compile_kernels.py"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"spills": 4},
        {"load_bits": 64},
        {"store_bits": 32},
        {"narrow_offsets": 1},
        {"bytes_moved": 12.5},
    ],
)
def test_worse_is_seen_and_better_is_not(change):
    other = ROW._replace(**change)
    (loss,) = _aot.worse([other], [ROW])
    assert loss.startswith(f"op/fp32 on sm_90: {next(iter(change))} ")
    assert _aot.worse([ROW], [other]) == []


def test_more_registers_are_no_loss_while_none_spills():
    assert _aot.worse([ROW._replace(registers=200, shared=4096)], [ROW]) == []


def test_the_table_must_hold_every_row_of_an_op_and_no_other():
    assert _aot.worse([ROW], []) == ["op/fp32 on sm_90: not in the table"]
    assert _aot.worse([ROW], [ROW, ROW._replace(target="gfx942")]) == [
        "op/fp32 on gfx942: only in the table"
    ]
    assert _aot.worse([ROW], [ROW, ROW._replace(op="other", variant="other/fp32")]) == []


def test_a_table_comes_back_as_it_was_written(tmp_path):
    _aot.write(tmp_path / "table.csv", [ROW, ROW._replace(target="gfx942", bytes_moved=10.667)])
    assert _aot.read(tmp_path / "table.csv") == [
        ROW,
        ROW._replace(target="gfx942", bytes_moved=10.667),
    ]


def test_check_exits_with_1_and_leaves_the_table(tmp_path):
    table = tmp_path / "table.csv"
    rows = [row for row in _aot.read(TABLE) if row.op == "q_sample"]
    _aot.write(table, [row._replace(load_bits=2 * row.load_bits) for row in rows])
    before = table.read_bytes()
    command = [sys.executable, str(TOOL), "q_sample", "--check", "--table", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, env=without_interpreter())
    assert done.returncode == 1, done.stderr
    assert "q_sample/fp32 on sm_90: load_bits 128, was 256" in done.stdout
    assert table.read_bytes() == before


def test_a_file_that_is_no_table_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_aot, "report", lambda ops: pytest.fail("compiled before it was refused"))
    for name, text in (("notes.md", "# Notes\n\nof mine"), ("other.csv", "a,b\n1,2\n")):
        path = tmp_path / name
        path.write_text(text)
        monkeypatch.setattr(sys, "argv", [str(TOOL), "q_sample", "--table", str(path)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert end.value.code == 2 and "is no table of compiled" in capsys.readouterr().err
        assert path.read_text() == text


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="kernels are not interpreted here")
def test_a_process_that_interprets_kernels_says_that_it_cannot_compile():
    with pytest.raises(
        BackendError, match="TRITON_INTERPRET=1 leaves nothing to compile; unset it"
    ):
        _aot.report(["q_sample"])
