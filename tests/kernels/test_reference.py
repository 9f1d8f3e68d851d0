"""Laws of the reference ops: they are the specification that kernels are held to."""

import inspect

from dream_kernels import OPS, reference


def test_every_op_has_its_reference_under_its_own_name():
    assert {name: getattr(reference, name) for name in OPS} == {
        name: op.reference for name, op in OPS.items()
    }


def test_every_op_takes_what_its_reference_takes():
    for name, op in OPS.items():
        of_op, of_reference = (inspect.signature(f).parameters for f in (op.function, op.reference))
        assert [(p.name, p.kind, p.default) for p in of_op.values()] == [
            (p.name, p.kind, p.default) for p in of_reference.values()
        ], name
