from tests.fidelity.rounds import apo


def test_known_answers(all_reached):
    all_reached(apo)
