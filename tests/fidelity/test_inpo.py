from tests.fidelity.rounds import inpo


def test_known_answers(all_reached):
    all_reached(inpo)
