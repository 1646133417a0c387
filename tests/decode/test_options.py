"""Options of the decode step: only for the platform that they are for, and where it knows them."""

from decode.options import decode_options, known
from sharding.mesh import make_mesh, parse_mesh


def test_a_compiler_without_the_option_is_asked_first():
    mesh = make_mesh(parse_mesh("1x1x2"))
    assert not known(mesh)  # XLA:CPU has it not, and says so
    assert decode_options(mesh) is None
